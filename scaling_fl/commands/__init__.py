"""Commands that show the task (`show_task`), the shards (`show_shards`) or a trained model's test results (`evaluate`).

Each runs in a child process, like the preparation, and sends its lines to the console. Only `csv_file` writes a file.
"""
