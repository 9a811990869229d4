"""What a `TCPServer` is made of."""
