"""Commands as users type them: their words and flags, configuration files, and folders for results."""

import pickle

from tests.scripts.bad_input.row import CHECKPOINT, OUT, Hostile, Row, put

TYPED = (
    Row("an unknown key", ("num_round=3: unknown key; did you mean num_rounds?",), {"num_round": 3}),
    Row("`with` twice", ("with: it is there twice",), {"with": None}),
    Row("a key of another tool", ("lr=0.1: unknown key; did you mean learning_rate?",), {"lr": 0.1}),
    Row("a flag that Sacred applies too late", ("-t x: there is no record in TinyDB; records go to runs/",), {"-tx": None}),
    Row("text for a seed", ("seed='abc': expected a whole number",), {"seed": "abc"}),
    Row("an invalid literal", ("num_rounds='{[]: 1}': expected a whole number",), {"num_rounds": "{[]: 1}"}),
    Row("bytes that are not UTF-8", ("author='caf\\udce9': expected UTF-8 text",), {"author": "caf\udce9"}),
    Row("a missing configuration file", ("no.json: expected key=value, a named configuration (demo, paper) or an existing file",), {"no.json": None}),
    Row("a truncated configuration file", ("c.json: expected a configuration as JSON or YAML, found an error (Expecting value: line 1", "correct it"), {"c.json": None}, put("c.json", '{"seed": ')),
    Row("a tab in a configuration file", ("c.yaml: expected a configuration as JSON or YAML, found an error (while scanning", "line 1, column 7"), {"c.yaml": None}, put("c.yaml", "seed: \t- 3")),
    Row("an empty configuration file", ("c.yaml: expected keys and values, found nothing; write a line such as",), {"c.yaml": None}, put("c.yaml", "")),
    Row("a mistyped named configuration", ("dmeo: expected key=value, a named configuration (demo, paper) or an existing file (did you mean demo?)",), {"dmeo": None}),
    Row("a missing file", ("train_path='no.csv': there is no such file",), {"train_path": "no.csv"}),
    Row("fewer examples than sites", ("2 training examples are too few for 3 sites", "use fewer site_ids"), {"site_ids": [-1] * 3, "max_train_examples": 2}),
    Row("a key of another partition", ("labels_per_site=2: belongs to partition=labels_per_site, but this is partition=iid",), {"labels_per_site": 2}),
    Row("a checkpoint folder that isn't writable", ("checkpoints_dir=/proc/here: cannot write to it", "check the path or URL"), {"checkpoints_dir": "/proc/here"}),
    Row("a pickle for a checkpoint", ("found only damaged checkpoints", "Restore one"), OUT, put(str(CHECKPOINT), pickle.dumps(Hostile(), 2))),
    Row("a record folder that isn't writable", ("runs: cannot write to it (", "run the command in a folder you can write to"), {"checkpoints_dir": "new"}, put("runs", "")),
    Row("another record folder that isn't writable", ("/proc/here: cannot write to it (", "pass -u for no record"), {"checkpoints_dir": "new", "-F/proc/here": None}),
)  # fmt: skip
