"""Commands other than train: show_task, show_shards, evaluate (a trained model's test results), export (of a checkpoint).

Each runs in a child process, like the preparation, and sends its lines to the console. job_checkpoint: what evaluate and
export read of a job. Only csv_file writes a file, and export a folder, through `checkpoint`.
"""
