"""Faults and attacks, each a probe that takes figures from a server in a process of its own.

`tests.faults.test_probes` holds ours to its thresholds; ``python -m tests.faults`` measures the others as well.
"""
