"""Text classification tasks, one module each, found by the module's name (`task_name`).

A task module has a function `load(config, report) -> Task`, and says which of the keys in `task_loader.KEYS` it
`NEEDS` and which it `TAKES`. A new task is a new file here; no other code changes.
Not here: reading files (`data/readers`) and the checks that all tasks share (`data/task_loader`).
"""
