"""Commands that train nothing, as users run them: no site starts, and no file is written."""

import re
from pathlib import Path

from tests.scripts.script import Command


def test_sacreds_commands_start_nothing_and_write_nothing(command: Command, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("learning_rate: 1e-2\nprecision: auto\n")  # a text, for YAML
    words = ["demo", "my.yaml", "job_name=20261122_230300", "num_rounds=2"]
    before = sorted(tmp_path.rglob("*"))
    shown = command("print_config", "with", *words, cold=True)
    assert shown.returncode == 0, shown.stderr
    for line in (
        "job_name = '20261122_230300'  (default: None)\n", "site_ids = [0, 0, 0, 0]", "num_rounds = 2  (default: 10)\n",
        "model = 'tiny'", "num_sites = 4\n", "partition = 'iid'\n", "learning_rate = 0.01  (default: 5e-05)\n",
    ):  # fmt: skip
        assert line in shown.stdout
    assert re.search(r"^  precision = '(fp32|bf16|fp16)'$", shown.stdout, re.MULTILINE)
    assert re.search(r"^  threads_per_site = [1-9]", shown.stdout, re.MULTILINE)
    assert "\x1b" not in shown.stdout + shown.stderr, "colours in a pipe"
    named = command("print_named_configs")
    assert named.returncode == 0
    assert "demo" in named.stdout
    assert "paper" in named.stdout
    assert sorted(tmp_path.rglob("*")) == before


# A sitecustomize.py of a library that logs when the command ends, as torch does.
LIBRARY = """
import atexit, logging
def log():
    logging.getLogger("library").info("statistics")
    logging.getLogger("library").warning("trouble")
atexit.register(log)
"""


def test_of_the_log_of_libraries_only_warnings_are_shown(command: Command, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(LIBRARY)
    for flags in ((), ("--loglevel=DEBUG",)):
        shown = command(*flags, "print_named_configs", cold=True, PYTHONPATH=str(tmp_path))
        assert "INFO - scaling_fl - Started\n" in shown.stderr
        assert "statistics" not in shown.stderr
        assert shown.stderr.endswith("WARNING - library - trouble\n")


def test_a_task_is_shown_without_a_site_or_a_record(command: Command, words: list[str], tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    shown = command("show_task", *words, "max_seq_len=7")
    assert shown.returncode == 0, shown.stderr
    assert "task csv: 100 training and 23 test rows" in shown.stdout
    assert "over max_seq_len=7" in shown.stdout
    assert "training examples" in shown.stdout
    assert "site" not in shown.stdout
    refused = command("show_task", *words, "label_column=kind")
    assert "Failed after" not in refused.stdout + refused.stderr, "a refusal isn't a failure"
    assert refused.returncode == 1
    assert "label_column='kind': " in refused.stderr
    assert "Traceback" not in refused.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_shards_are_shown_without_a_site_or_a_record(command: Command, words: list[str], tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    more = ["partition=dirichlet", "alpha=0.1", "num_sites=9", "validation_fraction=0.1"]
    shown = command("show_shards", *words, *more)
    assert shown.returncode == 0, shown.stderr
    assert "partition=dirichlet alpha=0.1: 9 sites, 90 training rows; 10 more are held back" in shown.stdout
    assert [line.split()[0] for line in shown.stdout.splitlines() if line.strip()[:1].isdigit()][:9] == list(
        "012345678"
    )
    assert "sites on cpu" not in shown.stdout
    refused = command("show_shards", *words, "partition=column", "partition_column=town")
    assert refused.returncode == 1
    assert "partition_column='town': " in refused.stderr
    assert "Traceback" not in refused.stderr
    assert sorted(tmp_path.rglob("*")) == before
