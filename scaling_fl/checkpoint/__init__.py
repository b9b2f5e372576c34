"""Checkpoints: publishing the server state atomically, finding the newest intact one, and resuming from it.

Only this package writes through fsspec. storage: files in a local folder or an object store; retries: which of its
errors are transient; store: checkpoints by round; final_model: the exported model; header: what a checkpoint says about
the job; history: the rounds in it; resume: its compatibility checks; lease: one live run per job. The format of a state
file is in `state_file.py`; `runtime/coordinator.py` decides when a checkpoint is due.
"""
