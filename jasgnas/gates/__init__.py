"""Gates on the edges of a network that have no parameters, so that there is something to search for there."""
