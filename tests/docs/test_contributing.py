"""The worked examples of CONTRIBUTING.md apply to the current code, and pass their own tests."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```diff\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
HUNK = re.compile(r"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@.*\n", re.MULTILINE)


def apply(diff: str, folder: Path) -> list[str]:
    """Apply a unified diff like `git apply` (images may lack git); return the names of the files."""
    names = []
    for part in re.split(r"^diff --git .*\n", diff, flags=re.MULTILINE)[1:]:
        header, *hunks = HUNK.split(part)
        found = re.search(r"^--- (?:a/(.*)|/dev/null)\n\+\+\+ b/(.*)\n$", header, re.MULTILINE)
        assert found, f"expected --- a/FILE and +++ b/FILE, found {header!r}"
        old_name, name = found.groups()
        path = folder / name
        assert path.exists() == (old_name is not None), f"{name}: --- says {old_name}"
        lines = path.read_text(encoding="utf-8").splitlines() if old_name else []
        for start, old_count, _, new_count, body in zip(*(iter(hunks),) * 5, strict=True):
            hunk = [line or " " for line in body.splitlines()]
            old = [line[1:] for line in hunk if line[0] in " -"]
            new = [line[1:] for line in hunk if line[0] in " +"]
            assert (len(old), len(new)) == (int(old_count or 1), int(new_count or 1)), f"{name}: line counts of {start}"
            places = [at for at in range(len(lines) + 1) if lines[at : at + len(old)] == old]
            assert places, f"{name}: these lines have changed; update the example:\n" + "\n".join(old)
            at = min(places, key=lambda at: abs(at + 1 - int(start)))
            lines[at : at + len(old)] = new
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        names.append(name)
    return names


def test_the_examples_apply_and_pass_their_tests(tmp_path: Path) -> None:
    for name in ("scaling_fl", "tests", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    names_by_example = [apply(example, tmp_path) for example in EXAMPLES]
    names = [name for names in names_by_example for name in names]
    assert len(set(names)) == len(names), "examples that share no files can be applied independently"
    for example in names_by_example:
        assert any(name.startswith("docs/") for name in example)
    tests = [[name for name in example if re.search(r"(^|/)test_\w+\.py$", name)] for example in names_by_example]
    assert [len(found) for found in tests] == [1, 1, 1, 1], "a task, a partition, a server optimiser, a record target"
    # One process for all, so that torch is imported once, and without conftest.py, which imports much more.
    quick = ["-p", "no:cacheprovider", "--noconftest", "-c", os.devnull, "--rootdir", str(tmp_path)]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *quick, *(name for found in tests for name in found)],
        cwd=tmp_path,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "", "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_hunks_apply_to_moved_lines_and_are_refused_if_lines_have_changed(tmp_path: Path) -> None:
    diff = "diff --git a/f b/f\n--- a/f\n+++ b/f\n@@ -3,2 +3,3 @@ def f():\n same\n+new\n\n@@ -8 +9 @@\n-old\n+newer\n"
    file = tmp_path / "f"
    file.write_text("same\n\n1\n2\n3\nsame\n\nold\n")
    assert apply(diff, tmp_path) == ["f"]
    assert file.read_text() == "same\nnew\n\n1\n2\n3\nsame\n\nnewer\n"
    file.write_text("other\n\nold\n")
    with pytest.raises(AssertionError, match="f: these lines have changed"):
        apply(diff, tmp_path)


def test_the_drawing_shows_the_layers_that_the_linter_enforces() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = next(c["layers"] for c in config["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    (drawing,) = re.findall(r"^┌.*?^└", TEXT, re.DOTALL | re.MULTILINE)
    assert [re.findall(r"\w+", line) for line in drawing.splitlines() if re.search(r"\w", line)] == [
        re.findall(r"\w+", layer) for layer in layers
    ]


@pytest.mark.skipif(not (ROOT / ".ci" / "run").exists(), reason="images don't contain .ci")
def test_the_listed_checks_are_those_of_ci_run() -> None:
    section = TEXT.partition("\n## Checks\n")[2].partition("\n## ")[0]
    commands = re.findall(
        r"^(?:\./run-local\.sh|\.venv/bin/\S+|NO_MKDOCS_2_WARNING=1) [^#\n]*?(?= *(?:#|$))", section, re.MULTILINE
    )
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    expected = [line.replace(' "$@"', "") for line in run if line.startswith(("./run-local.sh", ".venv", "NO_MKDOCS"))]
    assert commands == expected
