"""Tests of servers in the test's own process."""
