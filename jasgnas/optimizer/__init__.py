"""The optimizer that takes groups to zero: H2SPG, where the groups lie, and which go first."""
