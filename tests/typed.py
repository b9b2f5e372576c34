"""Commands that are typed, without the seconds that their imports take: each is forked from a process that has imported
all that they need, once.

What comes of it is a process like any other: a child of the tests, with arguments, an environment, a folder, and pipes of
its own. It runs the script from its first line, and its fork server is forked from it, instead of started. `popen` takes the
way of a shell where something that a library reads when it is imported differs, and where it is told to (`cold`).
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import inspect
import io
import multiprocessing.util
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scaling_fl.runtime import launcher, signals

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "train_federated.py"

# What only the program itself reads, or a library each time anew. Where another variable differs, a new process is started.
_FREE = ("SACRED_", "AWS_", "CHAOS", "PYTEST_", "SCALING_FL_", "AIP_", "GCSFS_")
_FREE_NAMES = {
    "TMPDIR", "CLUSTER_SPEC", "STORAGE_EMULATOR_HOST", "TEST_BUCKET", "PYTHONUNBUFFERED", "MASTER_ADDR", "MASTER_PORT",
    "WORLD_SIZE", "RANK", "TOKENIZERS_PARALLELISM",
}  # fmt: skip
_MODULES = (
    "scaling_fl.runtime.preparation", "scaling_fl.runtime.worker", "scaling_fl.runtime.job", "scaling_fl.commands.show_task",
    "scaling_fl.commands.show_shards", "scaling_fl.tracking.mongo", "sacred", "sacred.run", "dotenv", "git", "gridfs",
    "s3fs", "gcsfs", "pyarrow.csv", "pyarrow.parquet", "filelock", "transformers.models.auto.modeling_auto",
    "transformers.models.bert.modeling_bert",
)  # fmt: skip
_PR_SET_CHILD_SUBREAPER, _CLONE_NEWNET = 36, 0x40000000  # of Linux


def popen(
    *arguments: str, script: Path = SCRIPT, cold: bool = False, network: str = "", **options: Any
) -> "subprocess.Popen[str]":
    """`subprocess.Popen([python, script, *arguments], **options)`; `network`: the name of the namespace that it is in."""
    argv, environ = [sys.executable, str(script), *arguments], options.get("env") or os.environ
    if cold or fixed(environ) != _nursery.environ:
        return subprocess.Popen(["ip", "netns", "exec", network, *argv] if network else argv, **options)
    return _Forked([network, *argv], **options)


def run(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """The same, to its end; what it wrote is captured."""
    with popen(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        try:
            out, err = process.communicate()
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def fixed(environ: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that a process must have from its start on."""
    free = _FREE_NAMES | launcher.LIBRARY_ENVIRONMENT.keys()
    return {name: value for name, value in environ.items() if name not in free and not name.startswith(_FREE)}


def start_with(environ: Mapping[str, str]) -> None:
    """What the commands' environments have in common in this session."""
    _nursery.environ = fixed(environ)


class _Forked(subprocess.Popen):  # type: ignore[type-arg]
    """A process that `Popen` looks after like those that it starts."""

    def _execute_child(self, *values: Any) -> None:
        given = inspect.signature(subprocess.Popen._execute_child).bind(self, *values).arguments  # type: ignore[attr-defined]
        ends = [given[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        files = [own if end == -1 else end for own, end in enumerate(ends)]
        folder, environ = given["cwd"] or os.getcwd(), given["env"] or dict(os.environ)
        self.pid = _nursery.fork((given["args"], str(folder), dict(environ), given["start_new_session"]), files)
        self._child_created = True
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(given[name] for name in pipes))  # type: ignore[attr-defined]


class _Nursery:
    """The process that all are forked from, started at the first."""

    def __init__(self) -> None:
        self.environ: dict[str, str] = {}
        self._socket: socket.socket | None = None

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.typed", str(theirs.fileno())], cwd=ROOT, pass_fds=[theirs.fileno()],
                env=self.environ | launcher.LIBRARY_ENVIRONMENT | {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"},
            )  # fmt: skip
        atexit.register(self._end)
        self._socket = ours
        return ours

    def _end(self) -> None:
        assert self._socket is not None
        self._socket.close()
        self._process.wait()

    def fork(self, command: tuple[Any, ...], files: list[int]) -> int:
        """Its process is a child of this one: it is adopted when the one between them ends."""
        ours = self._socket or self._start()
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        try:
            content = pickle.dumps(command)
            socket.send_fds(ours, [len(content).to_bytes(8, "little")], files)
            ours.sendall(content)
            answer = ours.recv(8)
        finally:
            libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        assert answer, "the process that commands are forked from has ended"
        return int.from_bytes(answer, "little")


_nursery = _Nursery()


def _serve(theirs: socket.socket) -> None:
    """Fork a process for each command that comes, until the tests end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the tests
    for name in _MODULES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # the pages stay shared
    while True:
        size, files, _, _ = socket.recv_fds(theirs, 8, 3)
        if not size:
            return
        command = pickle.loads(theirs.recv(int.from_bytes(size, "little")))
        number, tell = os.pipe()
        between = os.fork()
        if between == 0:
            child = os.fork()
            if child == 0:
                _become(files, *command)
            os.write(tell, child.to_bytes(8, "little"))
            os._exit(0)
        os.waitpid(between, 0)  # its child is adopted now
        theirs.sendall(os.read(number, 8))
        for file in (*files, number, tell):
            os.close(file)


def _become(files: list[int], argv: list[str], folder: str, environ: dict[str, str], new_session: bool) -> None:
    """Be `python *argv` to its end."""
    network, _, *argv = argv
    status = 1
    try:
        if network:
            with open(f"/run/netns/{network}") as namespace:
                assert ctypes.CDLL(None).setns(namespace.fileno(), _CLONE_NEWNET) == 0
        if new_session:
            os.setsid()
        _open_only(dict(enumerate(files)))
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environ)
        tempfile.tempdir = None
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.stdin = sys.__stdin__ = open(0, closefd=False)  # type: ignore[misc]  # noqa: SIM115
        unbuffered = bool(environ.get("PYTHONUNBUFFERED"))
        for name, errors in (("stdout", "strict"), ("stderr", "backslashreplace")):
            raw = open(1 + (name == "stderr"), "wb", 0 if unbuffered else -1, closefd=False)  # noqa: SIM115
            by_line = name == "stderr" or raw.isatty()
            text = io.TextIOWrapper(raw, "utf-8", errors, line_buffering=by_line, write_through=unbuffered)
            setattr(sys, name, text)
            setattr(sys, f"__{name}__", text)
        sys.argv, sys.path[0] = argv, str(Path(argv[0]).resolve().parent)
        multiprocessing.util.spawnv_passfds = _spawn  # type: ignore[assignment]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        main.__file__ = argv[0]
        try:
            exec(compile(Path(argv[0]).read_text(), argv[0], "exec"), main.__dict__)
            status = 0
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            else:
                status = end.code or 0
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


_plain_spawn = multiprocessing.util.spawnv_passfds


def _spawn(path: Any, args: Sequence[Any], passed: Sequence[int]) -> int:
    """In place of `multiprocessing.util.spawnv_passfds`: the fork server has imported already what it would import."""
    if "multiprocessing.forkserver" not in args[-1]:
        return _plain_spawn(path, args, passed)
    child = os.fork()
    if child:
        return child
    try:
        signal.set_wakeup_fd(-1)
        for number in signals.STOP_SIGNALS:  # as a new program has them
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        multiprocessing.util.spawnv_passfds = _plain_spawn
        sys.modules["__main__"] = types.ModuleType("__main__")
        _open_only({0: 0, 1: 1, 2: 2} | {file: file for file in passed})
        exec(args[-1], {})
    except SystemExit:
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _open_only(wanted: dict[int, int]) -> None:
    """Have these files open, under these numbers, and no others."""
    if any(number != file for number, file in wanted.items()):
        high = {number: os.dup(file) for number, file in wanted.items()}
        for number, file in high.items():
            os.dup2(file, number)
    for number in wanted:
        os.set_inheritable(number, number <= 2)
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in wanted:
            with contextlib.suppress(OSError):  # that of this list
                os.close(int(name))
    signals.wakeup, signals._wakeup_writer = os.pipe()  # each program has one of its own


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
