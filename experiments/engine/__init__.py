"""The training engine: what one run does, from its settings to the folder that holds its results.

`config.py` has the settings and `presets.py` the named ones. `networks.py`, `optimizers.py`, `steps.py` and
`parallel.py` make one compiled training step; `training.py` repeats it, and writes by `logs.py` and `checkpoints.py`.
`compare.py` holds a sub-network against the network that it came from, `runs.py` knows the folder of a run, and
`job.py` puts all of it in order.
"""
