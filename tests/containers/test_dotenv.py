"""Docker Compose and Python read the same values from `.env`."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.containers, pytest.mark.timeout(2400), pytest.mark.usefixtures("image")]

NASTY = [
    "plain-1.0", "user:p%40ss@db:27017/name?tls=true&w=1", "", "a b", "a #b", "#b", "a$b", "$HOME", "${HOME}", "${HOME:-x}",
    "$$", "$(id)", "`id`", "it's", "'", "'q'", '"q"', 'say "hi"', r"a\b", r"a\nb", r"\\host", "end\\", r"it\'s", r"a\"b",
    "  blanks  ", "é ü €", "a=b", "export", "!p@ss;w|o<r>d*?[x]{y}", "it's $5 #1",
]  # fmt: skip


def quoted(value: str) -> str:
    """Quote a value by the rules in .env.template."""
    if re.fullmatch(r"[\w.\-:/@%+=,]*", value, re.ASCII):
        return value
    if "\\" in value:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return "'" + value.replace("'", "\\'") + "'"


def test_values_are_the_same_with_and_without_docker(copy: Path, tmp_path: Path, environ: dict[str, str]) -> None:
    names = [f"NASTY_{number}" for number in range(len(NASTY))] + ["SACRED_PASSWORD"]
    values = dict(zip(names, [*NASTY, "pa$$word #1 ${HOME}"], strict=True))
    before = (copy / ".env").read_text()
    script = "import json, os; print(json.dumps({k: v for k, v in os.environ.items() if k.startswith(('NASTY', 'SACRED_PASS'))}))"
    try:
        (copy / ".env").write_text("".join(f"{name}={quoted(value)}\n" for name, value in values.items()))
        inside = subprocess.run(
            [str(copy / "run-local.sh"), "-c", script],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert json.loads(inside.stdout) == values, inside.stderr
        # Without Docker, the script reads the file.
        program = f"import pathlib; from scaling_fl import env_file; env_file.load(pathlib.Path({str(copy)!r}) / '.env'); {script}"
        outside = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env=environ, capture_output=True, text=True, check=True
        )
        assert json.loads(outside.stdout) == values
        shell = {"SACRED_PASSWORD": "the shell's"}
        overridden = subprocess.run(
            [str(copy / "run-local.sh"), "-c", script], cwd=tmp_path, env=environ | shell, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert json.loads(overridden.stdout)["SACRED_PASSWORD"] == "the shell's"
    finally:
        (copy / ".env").write_text(before)


def test_files_named_in_dotenv_are_mounted(copy: Path, tmp_path: Path, environ: dict[str, str]) -> None:
    """The data folder, and Google's key file, whose path in the container differs."""
    data = tmp_path / "the $data"
    data.mkdir()
    (data / "a.csv").write_text("data")
    (tmp_path / "key.json").write_text("the key")
    before = (copy / ".env").read_text()
    script = "import os; print(open('data/a.csv').read(), open(os.environ['GOOGLE_APPLICATION_CREDENTIALS']).read())"
    try:
        (copy / ".env").write_text(
            f"DATA_MOUNT_DIR={quoted(str(data))}\nGOOGLE_APPLICATION_CREDENTIALS={quoted(str(tmp_path / 'key.json'))}\n"
        )
        done = subprocess.run(
            [str(copy / "run-local.sh"), "-c", script], cwd=tmp_path, env=environ, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.stdout == "data the key\n", done.stderr
    finally:
        (copy / ".env").write_text(before)


def test_the_template_explains_every_variable_that_compose_reads() -> None:
    files = "".join(path.read_text() for path in ROOT.glob("docker-compose*.yaml"))
    read = set(re.findall(r"\$\{(\w+)", files)) | set(re.findall(r"^      ([A-Z_]+):$", files, re.MULTILINE))
    template = (ROOT / ".env.template").read_text()
    # Set by run-local.sh, by clusters or for the hub, and not meant for .env.
    set_elsewhere = {name for name in read if name.startswith("SCALING_FL_")} | {"MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "HF_ENDPOINT", "HF_HUB_OFFLINE"}  # fmt: skip
    assert [
        name for name in sorted(read - set_elsewhere) if not re.search(rf"^#? ?{name}=", template, re.MULTILINE)
    ] == []
