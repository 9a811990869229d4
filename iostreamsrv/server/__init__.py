"""The parts of a `TCPServer`."""
