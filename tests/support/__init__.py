"""What several test files share. No test imports from a test file."""

from pathlib import Path

PROJECT = Path(__file__).parents[2]
