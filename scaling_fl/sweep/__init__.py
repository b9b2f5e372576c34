"""Sweeps: many jobs of one study, by one command that can be stopped and typed again.

definition: the file or command line as cells; cells: one job each, its name and its state; slots: what a machine can hold
at once; runner: the processes; view: the live table; results: tables and the page; slurm: cells handed to Slurm.
Every cell is a job of `scripts/train_federated.py` in a process of its own. Nothing here trains.
"""
