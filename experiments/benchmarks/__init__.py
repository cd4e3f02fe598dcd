"""What is measured beside the papers' tables: time, memory and sizes.

Each benchmark is a module of its own, which the command of the same name calls. `measure.py` is what they share, and
`xla_cost.py` what XLA counts; `python -m experiments.benchmarks` runs those that belong together.
"""
