"""Other programs, each in a virtual environment of its own."""

import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock


def install(folder: Path, name: str, *requirements: str, alone: str | None = None) -> Path:
    """The programs of an environment, made once for all test processes; skip the test if that fails.

    `alone`: a package whose own requirements, that of Python's version among them, are ignored.
    """
    programs = folder / name / "bin"
    with FileLock(folder / f"{name}.lock"):
        if not (folder / name / "installed").exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder / name)], check=True)
            pip = [str(programs / "python"), "-m", "pip", "install", "--quiet"]
            for what in [[*requirements], ["--no-deps", "--ignore-requires-python", alone]][: 1 + (alone is not None)]:
                done = subprocess.run([*pip, *what], capture_output=True, text=True, timeout=900, check=False)
                if done.returncode != 0:
                    pytest.skip(f"pip can't install {name}: {done.stderr.strip()[-300:]}")
            (folder / name / "installed").touch()
    return programs


def run(programs: Path, script: Path, *arguments: Path) -> None:
    """Run a script by the environment's Python."""
    done = subprocess.run(
        [programs / "python", script, *arguments], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
