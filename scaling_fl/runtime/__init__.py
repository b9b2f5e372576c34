"""Processes: the job as the command sees it, its launcher, child processes, workers, signals and nodes.

The way of a job: job → launcher → preparation (a child) → worker (a child per entry of `site_ids`) → rounds.
Here: starting, watching and ending processes. Not here: what a worker computes (`federated`).
"""
