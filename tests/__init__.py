"""The tests of iostreamsrv."""
