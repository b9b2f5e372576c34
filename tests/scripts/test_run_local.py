"""run-local.sh, on a copy of it with requirements that need no download."""

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.scripts.executable import executable

Run = Callable[..., "subprocess.CompletedProcess[str]"]

SHOW = "import json, os, sys; print(json.dumps([sys.prefix, sys.argv[1:], os.getcwd()])); sys.exit(int(sys.argv[1]))"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose name contains a space, with its own script."""
    folder = tmp_path_factory.mktemp("a copy")
    shutil.copy(ROOT / "run-local.sh", folder)
    (folder / "requirements.txt").write_text("# nothing\n")
    (folder / "requirements-dev.txt").write_text("-r requirements.txt\n")
    (folder / "scripts").mkdir()
    (folder / "scripts" / "show.py").write_text(SHOW)
    # With its environment, so that tests may run in any order, each in any process.
    command = [str(folder / "run-local.sh"), "--no-docker", "scripts/show.py", "0"]
    subprocess.run(command, cwd=folder, env=os.environ | {"PYTHON": sys.executable, "PYTHONPATH": ""}, check=True)
    return folder


@pytest.fixture
def run(copy: Path) -> Run:
    def run(*arguments: str, cwd: Path = copy, **environ: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [str(copy / "run-local.sh"), *arguments],
            cwd=cwd,
            env=os.environ | {"PYTHON": sys.executable, "PYTHONPATH": ""} | environ,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_arguments_and_exit_status_pass_through_unchanged(run: Run, copy: Path) -> None:
    words = ["7", "with", "site_ids=[0,0,1,1]", "train_path=/a b/c*.csv", "author='me' \"too\"", "", "x=$HOME", "é"]
    done = run("--no-docker", "scripts/show.py", *words)
    assert done.returncode == 7, done.stderr
    prefix, arguments, folder = json.loads(done.stdout)
    assert arguments == words
    assert prefix == str(copy / ".venv")
    assert folder == str(copy)


def test_the_environment_is_made_once_and_renewed_when_the_requirements_change(run: Run, copy: Path) -> None:
    shutil.rmtree(copy / ".venv", ignore_errors=True)
    first = run("--no-docker", "scripts/show.py", "0")
    assert f"creating .venv with {sys.executable}\n" in first.stderr, "the interpreter that PYTHON names"
    assert "installing requirements.txt" in first.stderr
    second = run("--no-docker", "scripts/show.py", "0")
    assert (second.returncode, second.stderr) == (0, ""), "nothing to do, nothing to say"
    (copy / "requirements.txt").write_text("# nothing new\n")
    third = run("--no-docker", "scripts/show.py", "0")
    assert "installing requirements.txt" in third.stderr
    assert "creating .venv" not in third.stderr


@pytest.mark.parametrize("damage", ["bin/python", "lib/python3.*/site-packages/pip"])
def test_a_broken_environment_is_recreated(run: Run, copy: Path, damage: str) -> None:
    run("--no-docker", "scripts/show.py", "0")
    for path in (copy / ".venv").glob(damage):
        path.unlink() if path.is_symlink() else shutil.rmtree(path)
    done = run("--no-docker", "scripts/show.py", "3")
    assert done.returncode == 3, done.stderr
    assert "creating .venv" in done.stderr


@pytest.mark.parametrize("module", ["pytest", "ruff", "mypy", "mkdocs"])
def test_development_modules_bring_their_requirements(run: Run, copy: Path, module: str) -> None:
    run("--no-docker", "scripts/show.py", "0")
    (copy / ".venv" / ".requirements-dev.txt.installed").unlink(missing_ok=True)
    done = run("--no-docker", "-m", module, "--version")
    assert "installing requirements-dev.txt" in done.stderr
    assert f"No module named {module}" in done.stderr, "this copy's requirements are empty"
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--no-doker", "scripts/show.py"], "--no-doker: there is no such option"),
        (["--no-docker", "scripts/shwo.py"], "scripts/shwo.py: there is no such script here or in "),
    ],
)
def test_a_mistyped_option_or_script_is_refused_before_anything_is_installed(
    run: Run, copy: Path, words: list[str], said: str
) -> None:
    shutil.rmtree(copy / ".venv", ignore_errors=True)
    done = run(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"run-local.sh: {said}")
    assert not (copy / ".venv").exists()


def test_a_broken_installation_is_no_success_and_is_tried_again(run: Run, copy: Path) -> None:
    (copy / "requirements.txt").write_text("./no-such-package\n")
    for _ in range(2):
        done = run("--no-docker", "scripts/show.py", "0")
        assert done.returncode != 0
        assert "installing requirements.txt" in done.stderr
        assert done.stdout == ""
    (copy / "requirements.txt").write_text("# nothing\n")


def test_a_call_says_so_while_another_holds_the_lock(run: Run, copy: Path) -> None:
    run("--no-docker", "-c", "0")
    with open(copy / ".venv.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = subprocess.Popen(
            [str(copy / "run-local.sh"), "--no-docker", "-c", "print(7)"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        with waiting:
            assert waiting.stderr is not None
            assert "another call is installing .venv; waiting until it is done" in waiting.stderr.readline()
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert waiting.communicate()[0] == "7\n"


def test_a_job_that_runs_keeps_no_other_call_waiting(run: Run) -> None:
    done = run("--no-docker", "-c", "import fcntl; fcntl.flock(open('.venv.lock'), fcntl.LOCK_EX | fcntl.LOCK_NB)")
    assert (done.returncode, done.stderr) == (0, "")


def test_scripts_are_found_from_any_folder(run: Run, tmp_path: Path) -> None:
    done = run("--no-docker", "scripts/show.py", "0", cwd=tmp_path)
    assert json.loads(done.stdout)[2] == str(tmp_path)


def docker(folder: Path, body: str) -> str:
    """A PATH on which `docker` runs `body`."""
    return executable(folder, "docker", body)


NO_ENGINE = "echo 'Cannot connect' >&2; exit 1"
NO_COMPOSE = '[ "$1" = info ]'
OLD_COMPOSE = '[ "$1" = info ] || echo v2.23.3'


@pytest.mark.parametrize(
    ("body", "missing"),
    [
        (NO_ENGINE, "no Docker engine answers (Cannot connect)"),
        (NO_COMPOSE, "Docker has no Compose v2 (package docker-compose-plugin or docker-compose-v2)"),
        (OLD_COMPOSE, "Docker Compose is 2.23.3, but 2.24 or later is needed"),
    ],
)
def test_what_docker_lacks_is_reported_and_the_job_runs_without_it(
    run: Run, tmp_path: Path, body: str, missing: str
) -> None:
    path = docker(tmp_path, body)
    done = run("scripts/show.py", "3", PATH=path, COMPOSE_FILE="")
    assert done.returncode == 3
    assert done.stderr == f"run-local.sh: {missing}: using .venv instead (--no-docker suppresses this note)\n"
    assert run("--no-docker", "scripts/show.py", "0", PATH=path).stderr == ""


def test_compose_files_require_a_container(run: Run, tmp_path: Path) -> None:
    done = run("scripts/show.py", "0", PATH=docker(tmp_path, NO_ENGINE), COMPOSE_FILE="docker-compose.yaml")
    assert (done.returncode, done.stdout) == (1, "")
    assert "COMPOSE_FILE requires a container, but no Docker engine answers (Cannot connect)" in done.stderr


RECORD = r"""
[ "$1 $2" = "compose version" ] && echo 2.40.0 && exit
if [ "$1" = info ]; then echo "[name=seccomp name=$KIND] runc $RUNTIME "; exit; fi
{ printf '%s\n' "$SCALING_FL_USER" "$SCALING_FL_FOLDER"; printf '<%s>' "$@"; echo; } >>"$RECORD"
"""


@pytest.mark.parametrize(
    ("runtime", "devices", "expected"),
    [("", "", False), ("nvidia", "", True), ("nvidia", "0", True), ("nvidia", "none", False)],
)
def test_gpus_are_reserved_where_the_engine_has_them(
    run: Run, copy: Path, tmp_path: Path, runtime: str, devices: str, expected: bool
) -> None:
    (copy / "docker-compose.gpu.yaml").touch()
    environ = {"NVIDIA_VISIBLE_DEVICES": devices} if devices else {}
    path, record = docker(tmp_path, RECORD), tmp_path / "record"
    done = run("scripts/show.py", PATH=path, RECORD=str(record), RUNTIME=runtime, KIND="", COMPOSE_FILE="", **environ)
    assert done.returncode == 0, done.stderr
    assert (f"<--file><{copy}/docker-compose.gpu.yaml>" in record.read_text()) == expected


@pytest.mark.parametrize("place", ["environment", ".env"])
def test_each_of_several_gpus_is_reserved_by_itself(run: Run, copy: Path, tmp_path: Path, place: str) -> None:
    (copy / "docker-compose.gpu.yaml").write_text((ROOT / "docker-compose.gpu.yaml").read_text())
    devices = "1,GPU-5a/0"
    environ = {"NVIDIA_VISIBLE_DEVICES": devices} if place == "environment" else {}
    if place == ".env":
        (copy / ".env").write_text(f"NVIDIA_VISIBLE_DEVICES={devices}\n")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    body = RECORD + """for file in "$@"; do [ ! -f "$file" ] || grep -h device_ids: "$file" >>"$RECORD"; done; true\n"""
    path, record = docker(tmp_path, body), tmp_path / "record"
    done = run(
        "scripts/show.py", PATH=path, RECORD=str(record), RUNTIME="nvidia", KIND="", COMPOSE_FILE="",
        TMPDIR=str(temporary), **environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'device_ids: ["1", "GPU-5a/0"]' in record.read_text()
    assert "docker-compose.gpu.yaml" not in record.read_text()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(("kind", "user"), [("rootless", "0:0"), ("", f"{os.getuid()}:{os.getgid()}")])
def test_the_container_is_the_callers(run: Run, copy: Path, tmp_path: Path, kind: str, user: str) -> None:
    """With a rootless engine, the container's root is the user who started the engine."""
    path, record = docker(tmp_path, RECORD), tmp_path / "record"
    run("scripts/show.py", "a b", PATH=path, RECORD=str(record), RUNTIME="", KIND=kind, COMPOSE_FILE="", cwd=tmp_path)
    assert record.read_text().startswith(f"{user}\n{tmp_path}\n")
    assert "<main><scripts/show.py><a b>" in record.read_text()


# A job that is part of RECORD: its image is built, and it runs, each with the status that a test chooses.
JOB = (
    RECORD
    + r"""
case "$*" in
*" build main") echo "no base image"; exit ${BUILD:-0} ;;
*" main scripts/show.py") [ -d data ] || exit 99; [ -z "$WRITES" ] || touch data/x; exit ${STATUS:-0} ;;
esac
"""
)


@pytest.mark.parametrize(("build", "status"), [(3, 0), (0, 7)])
def test_the_status_is_that_of_the_job_or_of_a_build_that_fails(
    run: Run, tmp_path: Path, build: int, status: int
) -> None:
    path, record = docker(tmp_path, JOB), tmp_path / "record"
    environ = {"BUILD": str(build), "STATUS": str(status), "RUNTIME": "", "KIND": "", "COMPOSE_FILE": ""}
    done = run("scripts/show.py", PATH=path, RECORD=str(record), cwd=tmp_path, **environ)
    assert done.returncode == (build or status)
    failed = "no base image\nrun-local.sh: the image could not be built (--no-docker runs without one)\n"
    assert (failed in done.stderr, "<main><scripts/show.py>" in record.read_text()) == (build > 0, build == 0)


def test_nothing_of_a_container_is_left(run: Run, tmp_path: Path) -> None:
    path, record = docker(tmp_path, JOB), tmp_path / "record"
    run(
        "scripts/show.py", PATH=path, RECORD=str(record), RUNTIME="", KIND="", COMPOSE_FILE="", cwd=tmp_path, STATUS="1"
    )
    *_, ran, _, _, removed, _, _, down = record.read_text().splitlines()
    (name,) = re.findall("<--name><([^>]*)>", ran)
    assert removed == f"<rm><--force><{name}>"
    assert down.startswith(f"<compose><--project-name><{name}>")
    assert down.endswith("<down><--remove-orphans><--timeout><0>")


@pytest.mark.parametrize(("there", "writes", "left"), [(False, "", False), (False, "1", True), (True, "", True)])
def test_a_mount_point_that_nobody_has_used_is_removed(
    run: Run, tmp_path: Path, there: bool, writes: str, left: bool
) -> None:
    """Without it, the engine would make it, as root."""
    path, record = docker(tmp_path, JOB), tmp_path / "record"
    (tmp_path / "work").mkdir()
    if there:
        (tmp_path / "work" / "data").mkdir()
    environ = {"RUNTIME": "", "KIND": "", "COMPOSE_FILE": "", "WRITES": writes}
    done = run("scripts/show.py", PATH=path, RECORD=str(record), cwd=tmp_path / "work", **environ)
    assert (done.returncode, (tmp_path / "work" / "data").exists()) == (0, left)


def test_each_copy_has_an_image_of_its_own_and_all_of_a_user_a_cache(copy: Path, tmp_path: Path) -> None:
    """So that none runs the code of another."""
    shutil.copy(copy / "run-local.sh", tmp_path)
    names = RECORD + """echo "names $SCALING_FL_IMAGE $SCALING_FL_CACHE" >>"$RECORD"\n"""
    environ = os.environ | {"PATH": docker(tmp_path, names), "RUNTIME": "", "KIND": "", "COMPOSE_FILE": ""}
    found = []
    for number, folder in enumerate((copy, tmp_path, copy)):
        record = tmp_path / str(number)
        done = subprocess.run(
            [str(folder / "run-local.sh"), "-c", "0"], env=environ | {"RECORD": str(record)}, cwd=tmp_path, check=False
        )
        assert done.returncode == 0
        (of_run,) = {line for line in record.read_text().splitlines() if line.startswith("names ")}
        found.append(of_run.split()[1:])
    images, caches = zip(*found, strict=True)
    assert images[0] == images[2] != images[1]
    assert set(caches) == {f"scaling_fl-cache-{os.getuid()}"}


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "INT"), (signal.SIGTERM, "TERM"), (signal.SIGHUP, "HUP")])
@pytest.mark.parametrize("during", ["build", "job"])
def test_a_signal_ends_the_build_or_is_passed_on_to_the_job_once(
    copy: Path, tmp_path: Path, number: signal.Signals, name: str, during: str
) -> None:
    """A job saves its last round, and its status is returned."""
    body = (
        RECORD
        + r"""
case "$*" in
*" build main") [ "$DURING" = job ] || { echo begun >>"$RECORD"; exec sleep 1000; } ;;
"kill --signal "*) touch "$RECORD.killed" ;;
*" main scripts/show.py") echo begun >>"$RECORD"; n=0
    until [ -e "$RECORD.killed" ] || [ $n = 999 ]; do n=$((n + 1)); sleep 0.05; done; sleep 0.5; exit 77 ;;
esac
"""
    )
    record = tmp_path / "record"
    record.touch()
    environ = {"RECORD": str(record), "RUNTIME": "", "KIND": "", "COMPOSE_FILE": "", "DURING": during}
    process = subprocess.Popen(
        [str(copy / "run-local.sh"), "scripts/show.py"], cwd=tmp_path, env=os.environ | environ | {"PATH": docker(tmp_path, body)},
        stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        while "begun" not in record.read_text():  # the test's time-out is the limit
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        expected = 77 if during == "job" else 130 if number == signal.SIGINT else 143
        assert process.wait(60) == expected
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    passed_on = [line for line in record.read_text().splitlines() if line.startswith("<kill>")]
    assert [line.rpartition("<")[0] for line in passed_on] == [f"<kill><--signal><{name}>"] * (during == "job")
    assert ("<main><scripts/show.py>" in record.read_text()) == (during == "job")


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_goes_to_stdout(run: Run, flag: str) -> None:
    done = run(flag)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nUsage: ./run-local.sh [--no-docker] SCRIPT.py | -m MODULE [ARGUMENT...]\n" in done.stdout
    assert "  ./run-local.sh scripts/train_federated.py with demo " in done.stdout
    assert "set -euo" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_without_arguments_the_help_goes_to_stderr(run: Run) -> None:
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == run("--help").stdout


def test_a_machine_without_a_suitable_python_is_refused(run: Run, copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(copy / ".venv", ignore_errors=True)
    for name in ("bash", "dirname", "cat", "cksum", "sed", "flock", "env", "grep", "tail", "uname"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = run("scripts/show.py", "0", PATH=str(tmp_path), PYTHON="")
    assert done.returncode == 1
    assert "no Python 3.11, 3.12 or 3.13 with the module venv was found; install one" in done.stderr
