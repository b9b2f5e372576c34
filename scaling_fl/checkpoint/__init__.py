"""Checkpoints: publishing the server state atomically, finding the newest sound one, and resuming from it.

Only this package writes through fsspec. Here: layout, retries, the lease, and the checks of a resume.
Not here: what a state file looks like inside (`state_file.py`), and when a checkpoint is due (`runtime/coordinator`).
"""
