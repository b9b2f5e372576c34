"""Benchmarks pass code to other processes as strings, which linters don't check. The imports in it must exist."""

import importlib
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

IMPORT = re.compile(r"^from (scaling_fl[\w.]*) import (.+?)(?:  #.*)?$", re.MULTILINE)


@pytest.mark.parametrize("script", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda script: script.name)
def test_imports_of_benchmarks_exist(script: Path) -> None:
    for module, names in IMPORT.findall(script.read_text(encoding="utf-8")):
        imported = importlib.import_module(module)
        for name in names.split(", "):
            if not hasattr(imported, name):
                importlib.import_module(f"{module}.{name}")
