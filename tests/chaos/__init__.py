"""Tests on a network that does its worst."""
