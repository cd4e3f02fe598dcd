"""NAS-Bench-201 as the judge: a cell found in one run, and where it stands among all 15,625."""
