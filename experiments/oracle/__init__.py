"""The oracle that selections are judged by: `python -m experiments.oracle NETWORK`.

Many valid sets of groups go from one snapshot of a network, each by H2SPG, and train on alike, so that only the choice
differs. What a score would have chosen at the snapshot is then compared with the best choice there was.

`settings.py` says what is trained, `sets.py` which sets there are and which ones scores choose, `trainings.py` trains,
`records.py` keeps the results, `plan.py` decides what is trained next and on which core, `judge.py` compares, and
`pages.py` writes down what came of it.
"""
