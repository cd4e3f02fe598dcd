"""What may go: groups of parameters, which sets of them leave a valid network, and what they save."""
