"""What the process gives: the clock, the log, context variables, addresses as text, the limit of descriptors."""
