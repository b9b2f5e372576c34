"""Scripts as modules."""

import importlib.util
from types import ModuleType

from tests.conftest import ROOT


def imported(name: str) -> ModuleType:
    """The script `scripts/NAME.py`, which no package holds."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
