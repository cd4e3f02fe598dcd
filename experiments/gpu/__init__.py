"""What a GPU that can be had for minutes is to show: `python -m experiments.gpu --minutes 8`.

`checks.py` holds sub-networks and selections against the full network and the CPU's; `speed.py` times; `training.py`
trains rows of the papers' tables with the images and their augmentation on the device. `journal.py` keeps one line of
JSON for each of them, so that a second command goes on where a first one ended, and `page.py` writes the lines as
tables. `bundling.py` collects, on a machine with a network, what a machine without one lacks.
"""
