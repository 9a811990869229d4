"""Tests of one core."""

import pytest

from iostreamsrv import core

python_core = pytest.mark.skipif(core == "compiled", reason="it replaces a method that the compiled core calls in C")
