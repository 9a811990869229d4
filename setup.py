"""Packaging; everything but the fixed name of this file is in pyproject.toml."""

from setuptools import setup

setup()
