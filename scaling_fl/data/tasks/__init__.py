"""Text classification tasks, one module each; `task_name` is the module's name.

A task module defines `load(config, report) -> Task`, and declares which of the keys in `task_loader.KEYS` it `NEEDS`
(required) and `TAKES` (optional). A new task is a new file here, and its name in the help of `task_name`.
Not here: file readers (`data/readers`) and checks that apply to all tasks (`data/task_loader`).
"""
