"""Runnable experiments: they use only public names of jasgnas and are no part of the installed package."""
