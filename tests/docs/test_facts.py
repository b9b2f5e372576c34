"""README.md and docs/ describe the existing keys, tasks and files."""

import dataclasses
import re
from pathlib import Path
from types import ModuleType

import pytest

from scaling_fl.config.command_line import NAMED_CONFIGS
from scaling_fl.config.schema import Config
from scaling_fl.config.sections.data import TASKS
from tests.conftest import ROOT
from tests.scripts.imported import imported

DOCS = ROOT / "docs"
NAMES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"]
PAGES = [*(ROOT / name for name in NAMES), *sorted(DOCS.glob("*.md"))]
LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
KEYS = LINK.sub(r"\1", (DOCS / "configuration.md").read_text())  # pages named in help texts are links there


def as_command_line(value: object) -> str:
    return "[" + ",".join(map(str, value)) + "]" if isinstance(value, tuple) else str(value)


@pytest.fixture
def script() -> ModuleType:
    return imported("document_keys")


@pytest.mark.parametrize("field", dataclasses.fields(Config), ids=lambda field: field.name)
def test_every_key_is_explained(field: "dataclasses.Field[object]") -> None:
    default = "" if field.default is None else f"`{as_command_line(field.default)}`"
    help_ = field.metadata["help"].replace("|", r"\|")
    assert f"| `{field.name}` | {default} | {help_} |\n".replace("|  |", "| |") in KEYS


def test_named_configurations_are_shown() -> None:
    for name, values in NAMED_CONFIGS.items():
        shown = " ".join(
            f"{key}={as_command_line(tuple(v) if isinstance(v, list) else v)}" for key, v in values.items()
        )
        assert f"| `{name}` | `{shown}` |" in KEYS


def test_the_generated_tables_are_up_to_date(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--check"]) == 0, capsys.readouterr().err


def test_a_stale_table_is_reported_then_rewritten(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "PAGE", tmp_path / "page.md")
    fresh = (DOCS / "configuration.md").read_text()
    script.PAGE.write_text(fresh.replace("| `num_rounds` | `10` |", "| `num_rounds` | `11` |"))
    assert script.main(["--check"]) == 1
    assert capsys.readouterr().err == (
        "page.md is stale; regenerate it with: ./run-local.sh scripts/document_keys.py\n"
    )
    assert script.main([]) == 0
    assert script.PAGE.read_text() == fresh
    script.PAGE.write_text(fresh.replace("<!-- end of keys -->", ""))
    with pytest.raises(ValueError, match=r"expected <!-- keys: .* and <!-- end of keys -->; restore"):
        script.main([])


def test_keys_of_several_classes_get_a_table_each(script: ModuleType) -> None:
    def key(default: object, help_: str) -> object:
        return dataclasses.field(default=default, metadata={"help": help_})

    @dataclasses.dataclass
    class Rounds:
        """Rounds and epochs.

        The rest of a docstring.
        """

        num_rounds: int = key(10, "rounds; see docs/tasks.md")  # type: ignore[assignment]

    @dataclasses.dataclass
    class Sites:
        site_ids: tuple[int, ...] = key((0, 0), "one | other")  # type: ignore[assignment]

    @dataclasses.dataclass
    class Both(Rounds, Sites):
        """Everything."""

    head = "| key | default | meaning |\n| --- | --- | --- |\n"
    assert script.key_tables(Both) == (
        f"### Rounds and epochs\n\n{head}| `num_rounds` | `10` | rounds; see [docs/tasks.md](tasks.md) |\n\n"
        f"### Sites\n\n{head}| `site_ids` | `[0,0]` | one \\| other |"
    )
    assert script.key_tables(Rounds).startswith(head)  # a single class gets no heading


def test_every_task_is_explained() -> None:
    text = (DOCS / "tasks.md").read_text()
    for name in TASKS:
        assert f"| `{name}` |" in text


def test_the_architecture_names_every_package() -> None:
    text = (DOCS / "architecture.md").read_text()
    for folder in sorted(path.parent.name for path in (ROOT / "scaling_fl").glob("*/__init__.py")):
        assert f"| `scaling_fl/{folder}/` |" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_named_file_exists(page: Path) -> None:
    named = re.findall(
        r"`(?:\./)?((?:scaling_fl|scripts|benchmarks|cloud|docs|tests)/[\w/.-]*|run-local\.sh|\.env\.template)`",
        page.read_text(),
    )
    for path in named:
        assert (ROOT / path).exists(), path
