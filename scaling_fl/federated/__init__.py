"""The science: rounds, sites, cohorts, local and server optimisers, evaluation and metrics.

`rounds.py` is the loop, and reads like the papers. Here: what a round computes. Not here: processes, devices' memory,
paths, Sacred.
"""
