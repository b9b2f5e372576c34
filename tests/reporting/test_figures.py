"""scripts/report.py as users call it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scaling_fl.reporting import figures, frames
from tests.conftest import ROOT, clean_environment
from tests.reporting import builders

Report = Callable[..., "subprocess.CompletedProcess[str]"]
ONE = {"learning_curves", "costs", "label_counts", "shard_sizes", "site_accuracy", "phases", "confusion"}


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """The command, in a folder with the runs of two jobs."""
    for name, rate in (("news", 0.5), ("reviews", 0.25)):
        builders.job(tmp_path / "runs" / "_events", name, each="accuracy", learning_rate=rate)

    def run(*arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, str(ROOT / "scripts" / "report.py"), *arguments], cwd=tmp_path, capture_output=True,
            text=True, env=clean_environment() | environ, check=False,
        )  # fmt: skip

    return run


def test_the_figures_of_a_job_in_each_format(report: Report, tmp_path: Path) -> None:
    done = report("news", "--figures", "out", "--format", "svg,pdf,png")
    assert (done.returncode, done.stderr) == (0, "")
    first_bytes = {"svg": b"<svg", "pdf": b"%PDF", "png": b"\x89PNG"}
    assert set(done.stdout.split()) == {f"out/{name}.{suffix}" for name in ONE for suffix in first_bytes}
    for path in done.stdout.split():
        assert (tmp_path / path).read_bytes().startswith(first_bytes[path[-3:]])


def test_several_jobs_are_compared_and_each_has_its_own_figures(report: Report, tmp_path: Path) -> None:
    done = report("runs", "--figures", "out")
    assert (done.returncode, done.stderr) == (0, "")
    each = {f"out/{job}/{name}.svg" for job in ("news", "reviews") for name in ONE}
    together = {f"out/{name}.svg" for name in ("costs", "sweep_curves", "sweep_scaling")}
    assert set(done.stdout.split()) == together | each
    assert "learning_rate=0.25" in (tmp_path / "out" / "costs.svg").read_text()


def test_of_many_jobs_only_the_comparison_is_drawn(tmp_path: Path) -> None:
    cells = [{"num_sites": n, "seed": seed, "end": seed / 16} for n in (1, 2, 4) for seed in range(1, 8)]
    found = builders.sweep(tmp_path, *cells)
    assert len(found.runs) == 21
    written = figures.write(found, tmp_path / "out")
    assert {path.parent.name for path in written} == {"out"}
    few = found._replace(runs=found.runs.head(20))
    assert {path.parent.name for path in figures.write(few, tmp_path / "few")} > {"few"}


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["new", "--figures", "out"], 1, "Refused: new: there is no such job in runs (did you mean news?)"),
        (["news", "--figures", "out", "--format", "gif"], 1, "Refused: --format gif: expected some of svg, pdf, png"),
        (["news", "--figures", "taken"], 1, "Refused: --figures taken: can't write there (File exists)"),
        (["--figures", "out"], 2, "expected a source, such as the name of a job, or --mongo"),
        (["--mongo", "--figures", "out"], 1, "Refused: --mongo: .env names no database; set SACRED_MONGO_URL"),
        (["damaged", "--figures", "out"], 1, "Refused: damaged: no job has started there"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    report: Report, tmp_path: Path, arguments: list[str], status: int, said: str
) -> None:
    (tmp_path / "taken").touch()
    (tmp_path / "runs" / "_events" / "damaged.jsonl").write_text("{}\n")
    done = report(*arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_damaged_record_is_named_and_the_others_are_drawn(report: Report, tmp_path: Path) -> None:
    (tmp_path / "runs" / "_events" / "damaged.jsonl").write_text("{}\n")
    done = report("runs", "--figures", "out", "--output", "page.html")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "page.html"
    assert "damaged.jsonl: no run has started there" in (tmp_path / "page.html").read_text()
    assert done.stderr == "note: runs/_events/damaged.jsonl is left out: no run has started there\n"


@pytest.mark.parametrize(("arguments", "path"), [((), "report.html"), (("--output", "pages/p.html"), "pages/p.html")])
def test_without_figures_the_page_is_written(
    report: Report, tmp_path: Path, arguments: tuple[str, ...], path: str
) -> None:
    done = report("news", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{path}\n", "")
    assert (tmp_path / path).read_text().startswith("<!DOCTYPE html>")


def test_jobs_of_one_name_have_folders_that_every_file_system_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = []
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        paths.append(builders.job(tmp_path / folder))
    found = frames.load(*paths)
    monkeypatch.setattr(figures, "drawn", lambda frames: {})  # the pictures take seconds
    figures.write(found, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"news__{job.removeprefix('news (').removesuffix(')')}_" for job in found.runs["job"]}
    assert len(names) == 2
