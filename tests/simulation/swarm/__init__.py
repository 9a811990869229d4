"""A swarm: servers, clients and faults that are drawn from a seed, in a simulation, and what must hold of each.

::

    python -m tests.simulation.swarm --seeds 200

- `scenario` draws what is served, by which options, to which clients, with which faults, and when it is shut down.
- `servers` has a server of each style. All of them speak one protocol, which `protocol` describes.
- `clients` has a function for each character: honest, half-closing, silent, and so on.
- `record` has what both sides note of each connection; `world` runs a scenario.
- `invariants` has a function for each promise; it reads the records and reports what breaks the promise.
- `mutations` puts faults of the first release back, and counts the seeds that the swarm needs to find each.
"""
