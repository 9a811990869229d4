"""The tests of iostreamsrv.styles."""
