"""Sweeps: many jobs of one study, by one command that can be stopped and typed again. Nothing here trains.

definition: a file or command line as cells; cells: one job each, its name and state; slots: what a machine holds at once;
runner: the jobs' processes; view: the live table; estimate: time and memory; results: tables and the page; slurm: cells
as Slurm jobs. Every cell is a job of `scripts/train_federated.py` in a process of its own.
"""
