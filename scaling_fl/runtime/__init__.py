"""Processes: the job as the command sees it, its launcher, child processes, workers, signals and nodes.

Control flow: job → launcher → preparation (a child) → worker (a child per entry of `site_ids`) → rounds.
Here: starting, watching and ending processes. Not here: what a worker computes (`federated`).
"""
