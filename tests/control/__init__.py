"""Tests of the control socket and of `iostreamsrv ctl`."""
