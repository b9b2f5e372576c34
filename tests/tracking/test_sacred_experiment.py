"""What Sacred records of the sources, and what it logs."""

import logging
import subprocess
from pathlib import Path

import pytest
import sacred
from sacred import dependencies

from scaling_fl.config.schema import Config
from scaling_fl.tracking import sacred_experiment
from scaling_fl.tracking.sacred_experiment import Failed, Refused, Sources


def test_sources_are_those_of_a_commit_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> Sources:
        with monkeypatch.context() as patch:  # Sacred is told to reuse the answer
            patch.setattr(dependencies, "get_commit_if_possible", dependencies.get_commit_if_possible)
            return Sources(tmp_path)

    script = tmp_path / "scripts" / "train_federated.py"
    script.parent.mkdir()
    script.write_text("print(1)\n")
    assert (found().commit_unknown, found().uncommitted()) == (True, "no git repository with a commit")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=me", "-c", "user.email=me@lab"]
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "all"]):
        subprocess.run([*git, *words], check=True)
    assert (found().commit_unknown, found().uncommitted()) == (False, "")
    script.write_text("print(2)\n")
    assert found().uncommitted() == f"uncommitted changes in {tmp_path}"


@pytest.mark.parametrize(
    ("path", "level", "text", "error", "shown"),
    [
        (sacred.__file__, logging.INFO, "Started", None, True),
        (sacred.__file__, logging.WARNING, "No observers have been added to this run", None, False),
        (sacred.__file__, logging.INFO, "Failed after %s!", Failed(ValueError("why")), True),
        (sacred.__file__, logging.INFO, "Failed after %s!", Refused(ValueError("why")), False),
        ("/lib/botocore/credentials.py", logging.INFO, "Found credentials", None, False),
        ("/lib/botocore/credentials.py", logging.WARNING, "They expire", None, True),
    ],
)
def test_of_the_log_what_the_user_needs_is_shown(
    path: str, level: int, text: str, error: Exception | None, shown: bool
) -> None:
    record = logging.LogRecord("name", level, path, 1, text, (), None)
    try:
        if error is not None:
            raise error
        assert sacred_experiment._is_news(record) == shown
    except (Failed, Refused):
        assert sacred_experiment._is_news(record) == shown


@pytest.mark.parametrize(("verbosity", "shown"), [("quiet", False), ("normal", True), ("verbose", True)])
def test_a_quiet_job_leaves_out_that_it_has_started(verbosity: str, shown: bool) -> None:
    logger = logging.getLogger("scaling_fl")
    before = logger.level
    try:
        logger.setLevel(logging.INFO)
        sacred_experiment.set_log_level(Config(verbosity=verbosity))
        assert logger.isEnabledFor(logging.INFO) == shown
        assert logger.isEnabledFor(logging.WARNING)
    finally:
        logger.setLevel(before)
