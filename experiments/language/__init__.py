"""A language model of bytes, made smaller while it learns the sources of Python's standard library."""
