"""The simulation: what its network does, and servers on it."""
