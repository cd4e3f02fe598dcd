"""How does a person read it? A network traced anew, and written as the source of a Flax NNX module."""
