"""Configuration keys: declaration, validation, constraints between keys, and compatibility of a resumed job.

Here: everything that depends on keys and values alone. Not here: data, models, processes.
Task names are listed from the folder `data/tasks` without importing the tasks.
"""
