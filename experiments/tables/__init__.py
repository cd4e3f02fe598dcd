"""The papers' tables (arXiv 2305.18030, 2312.09411): one command per row, controls, ablations, and the results' text.

`rows.py` says what the rows are and how they are made smaller, `jobs.py` runs trainings and skips what is recorded,
`records.py` keeps the results, `ablations.py` varies one setting at a time, and `readme.py` writes the results down.
"""
