"""What the process gives: loops, signals, clocks, logs, contexts, the limit of descriptors. Checks of arguments."""
