"""Tornado's own tests of its streams, its TCP server and its client, run on ours.

The command is ``python -m tests.conformance [-v] [name ...]``.

- `iostreamsrv.tornado` puts our classes in the place of Tornado's, also in the Python processes that a test starts;
- `witness` sees which of the two are made;
- `child` does the same in those processes;
- `expectations` lists the tests that cannot pass, and those that prove nothing, each with its reason;
- `runner` runs the tests and judges: a test has passed only if our code was what ran.
"""
