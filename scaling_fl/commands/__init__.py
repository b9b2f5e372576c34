"""Commands that show the task (`show_task`) or the shards (`show_shards`) without training.

Both run in a child process, like the preparation, and send their lines to the console.
"""
