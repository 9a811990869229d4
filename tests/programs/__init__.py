"""Tests of programs in processes of their own: examples, docs, what others wrote."""
