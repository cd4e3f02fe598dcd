"""What is left: the full network evaluated without the entries that are zero or of no use."""
