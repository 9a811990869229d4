"""Tests of the command, as it is typed."""
