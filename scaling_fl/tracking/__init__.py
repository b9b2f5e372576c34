"""The records of a job. Its event file is the source of truth, and every record is a replay of it.

events: the append-only file; tracker: appends to it; record: the run as Sacred's viewers know it; replay: keeps a
target up to date with the file; file_record, mongo, mlflow_run, tensorboard: the targets; destinations: which targets a
job has; mongo_address, mlflow_server, secret_manager: the settings of servers; console, round_table: what the user sees;
sacred_experiment: Sacred's set-up.
"""
