"""Training and test data: tasks, file readers, tokens, and the partition of rows into shards.

Here: everything between a file and a padded batch. A new task is a new file in `tasks/`.
Not here: models, training, processes. Nothing here depends on the number of workers, except the
default of `num_sites`.
"""
