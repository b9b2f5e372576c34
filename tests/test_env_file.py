import os
from pathlib import Path

import pytest

from scaling_fl import env_file
from scaling_fl.errors import UserError


def test_values_are_read_as_they_stand_and_variables_already_set_take_precedence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENV_FILE_B", "the shell's")
    monkeypatch.delenv("ENV_FILE_A", raising=False)
    (tmp_path / ".env").write_text("# ENV_FILE_C=1\n\nENV_FILE_A='${HOME} #1'\nexport ENV_FILE_B=b\nENV_FILE_D=\n")
    env_file.load(tmp_path / ".env")
    assert os.environ["ENV_FILE_A"] == "${HOME} #1"
    assert os.environ["ENV_FILE_B"] == "the shell's"
    assert os.environ["ENV_FILE_D"] == ""
    assert "ENV_FILE_C" not in os.environ
    env_file.load(tmp_path / "no such file")


def test_of_a_name_that_is_set_twice_the_last_value_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a shell, and in Docker Compose."""
    monkeypatch.delenv("ENV_FILE_A", raising=False)
    (tmp_path / ".env").write_text("ENV_FILE_A=1\nENV_FILE_B=b\nENV_FILE_A=2\n")
    env_file.load(tmp_path / ".env")
    assert os.environ["ENV_FILE_A"] == "2"


@pytest.mark.parametrize(
    ("text", "line"),
    [("ENV_FILE_A=1\nS3CRET\n", 2), ("\n\n# a\nENV_FILE_A=1\n\n\nexport S3CRET", 7), ("ENV_FILE_A='S3CRET\nENV_FILE_B=2\n", 1), ("=S3CRET", 1)],
)  # fmt: skip
def test_a_line_that_sets_nothing_is_refused_by_number_and_not_shown(tmp_path: Path, text: str, line: int) -> None:
    (tmp_path / ".env").write_text(text)
    with pytest.raises(UserError, match=rf"\.env, line {line}: expected NAME=value, .*; correct the line") as error:
        env_file.load(tmp_path / ".env")
    assert "S3CRET" not in str(error.value)
    assert "ENV_FILE_A" not in os.environ, "nothing is set"


@pytest.mark.parametrize(
    ("text", "found"),
    [("S3\0CRET=1", "a NUL character; remove it"), ("S3CRET='a\0'", "a NUL character; remove it"), ("'S3CRET=a'=1", "a name with =")],
)  # fmt: skip
def test_what_no_variable_can_hold_is_refused(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / ".env").write_text(f"ENV_FILE_A=1\n\n{text}\n")
    with pytest.raises(UserError, match=rf"\.env, line 3: expected NAME=value, found {found}") as error:
        env_file.load(tmp_path / ".env")
    assert "S3" not in str(error.value)
    assert "ENV_FILE_A" not in os.environ, "nothing is set"


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".env").mkdir()
    with pytest.raises(
        UserError, match=r"\.env: cannot read it \(Is a directory\); correct its permissions, or remove it"
    ):
        env_file.load(tmp_path / ".env")


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"A=caf\xe9")
    with pytest.raises(UserError, match=r"\.env: expected UTF-8 text; save the file as UTF-8"):
        env_file.load(tmp_path / ".env")
