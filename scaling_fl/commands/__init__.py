"""Commands that show something without training: the task (`show_task`) and the shards (`show_shards`).

Both run in a child process, as the preparation does, and send their lines to the console.
"""
