"""Configuration keys: their declaration, validation, combinations, and what a resume may change.

Here: everything that can be said about keys and values alone. Not here: data, models, files, processes.
The names of the tasks are listed from the folder `data/tasks` without importing it.
"""
