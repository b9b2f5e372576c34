"""Tasks, one module each: text classification and language models. `task_name` is the module's name.

A task module defines `load(config, report) -> Task`, and declares which of the keys in `task_loader.KEYS` it `NEEDS`
(required) and `TAKES` (optional), or has `keys(config)` that returns both. A new task is a new file here, and its name in
the help of `task_name`.
Not here: file readers (`data/readers`) and checks that apply to all tasks (`data/task_loader`).
"""
