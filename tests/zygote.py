"""Run commands without paying for their imports: fork each from a zygote, a process that has imported everything once.

A forked command behaves like one started from a shell: it is a child of the tests, has its own arguments, environment,
folder and pipes, and runs the script from its first line. Its fork server is forked from it, too. `popen` starts a new
interpreter instead if the environment differs in a variable that libraries read on import, or with `cold=True`.
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

# Variables that no library reads on import: free to differ between commands forked from the same zygote.
_FREE_PREFIXES = ("SACRED_", "AWS_", "CHAOS", "PYTEST_", "SCALING_FL_", "AIP_", "GCSFS_")
_FREE_VARIABLES = {
    "TMPDIR", "CLUSTER_SPEC", "STORAGE_EMULATOR_HOST", "TEST_BUCKET", "PYTHONUNBUFFERED", "MASTER_ADDR", "MASTER_PORT",
    "WORLD_SIZE", "RANK", "TOKENIZERS_PARALLELISM",
}  # fmt: skip
_PRELOADED = (
    "scaling_fl.runtime.preparation", "scaling_fl.runtime.worker", "scaling_fl.runtime.job", "scaling_fl.commands.show_task",
    "scaling_fl.commands.show_shards", "scaling_fl.commands.evaluate", "scaling_fl.tracking.mongo", "sacred", "sacred.run", "dotenv", "git", "gridfs",
    "s3fs", "gcsfs", "pyarrow.csv", "pyarrow.parquet", "filelock", "transformers.models.auto.modeling_auto",
    "transformers.models.bert.modeling_bert",
)  # fmt: skip
_PR_SET_CHILD_SUBREAPER, _CLONE_NEWNET = 36, 0x40000000  # <linux/prctl.h>, <linux/sched.h>


def popen(
    *arguments: str, script: Path = SCRIPT, cold: bool = False, network: str = "", **options: Any
) -> "subprocess.Popen[str]":
    """Like `subprocess.Popen([python, script, *arguments], **options)`, in the network namespace `network` if given.

    A key that is set twice takes the later value: tests override the keys of a fixture. The command itself refuses it.
    """
    argv, environ = (
        [sys.executable, str(script), *last_values(without_page(arguments))],
        options.get("env") or os.environ,
    )
    if cold or import_time_environment(environ) != _zygote.environ:
        return subprocess.Popen(["ip", "netns", "exec", network, *argv] if network else argv, **options)
    return _ForkedPopen([network, *argv], **options)


def without_page(words: Sequence[str]) -> list[str]:
    """The words of a command line with `report=False`, unless they set it: a page at the end of each job takes seconds."""
    if "with" not in words or {"print_config", "sync"} & set(words):
        return list(words)
    keys = list(words).index("with") + 1
    return [*words[:keys], "report=False", *words[keys:]]


def last_values(words: Sequence[str]) -> list[str]:
    """The words of a command line, with each key's last value only."""
    last = {word.partition("=")[0]: number for number, word in enumerate(words)}
    return [word for number, word in enumerate(words) if "=" not in word or last[word.partition("=")[0]] == number]


def run(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run a command like `popen`, wait until it ends, and capture its output."""
    with popen(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        return wait_for(process)


def wait_for(process: "subprocess.Popen[str]") -> "subprocess.CompletedProcess[str]":
    """Wait until a process ends; kill it if the test ends earlier."""
    try:
        out, err = process.communicate()
    except BaseException:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def import_time_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that may be read on import, and so must match the zygote's."""
    free = _FREE_VARIABLES | launcher.LIBRARY_ENVIRONMENT.keys()
    return {name: value for name, value in environ.items() if name not in free and not name.startswith(_FREE_PREFIXES)}


def set_environment(environ: Mapping[str, str]) -> None:
    """Set the environment that the zygote will start with."""
    _zygote.environ = import_time_environment(environ)


class _ForkedPopen(subprocess.Popen):  # type: ignore[type-arg]
    """`Popen` for a process forked from the zygote."""

    def _execute_child(self, *values: Any) -> None:
        bound = inspect.signature(subprocess.Popen._execute_child).bind(self, *values).arguments  # type: ignore[attr-defined]
        child_ends = [bound[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        files = [standard if end == -1 else end for standard, end in enumerate(child_ends)]
        folder, environ = bound["cwd"] or os.getcwd(), bound["env"] or dict(os.environ)
        self.pid = _zygote.fork((bound["args"], str(folder), dict(environ), bound["start_new_session"]), files)
        self._child_created = True
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(bound[name] for name in pipes))  # type: ignore[attr-defined]


class _Zygote:
    """The process that commands are forked from; started by the first one."""

    def __init__(self) -> None:
        self.environ: dict[str, str] = {}
        self._socket: socket.socket | None = None

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.zygote", str(theirs.fileno())], cwd=ROOT, pass_fds=[theirs.fileno()],
                env=self.environ | launcher.LIBRARY_ENVIRONMENT | {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"},
            )  # fmt: skip
        atexit.register(self._stop)
        self._socket = ours
        return ours

    def _stop(self) -> None:
        assert self._socket is not None
        self._socket.close()
        self._process.wait()

    def fork(self, command: tuple[Any, ...], files: list[int]) -> int:
        """Fork a command and return its pid. This process adopts it (as subreaper) when the intermediate process ends."""
        ours = self._socket or self._start()
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        try:
            request = pickle.dumps(command)
            socket.send_fds(ours, [len(request).to_bytes(8, "little")], files)
            ours.sendall(request)
            pid = ours.recv(8)
        finally:
            libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        assert pid, "the zygote has ended"
        return int.from_bytes(pid, "little")


_zygote = _Zygote()


def _serve(theirs: socket.socket) -> None:
    """Fork a process for each request until the tests close the socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends Ctrl-C to the tests' whole process group
    for name in _PRELOADED:
        with contextlib.suppress(ImportError if name == "git" else ()):  # GitPython needs git, which the image lacks
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # collections in the children would copy the shared pages
    while True:
        size, files, _, _ = socket.recv_fds(theirs, 8, 3)
        if not size:
            return
        command = pickle.loads(theirs.recv(int.from_bytes(size, "little")))
        pid_reader, pid_writer = os.pipe()
        intermediate = os.fork()
        if intermediate == 0:
            child = os.fork()
            if child == 0:
                _execute(files, *command)
            os.write(pid_writer, child.to_bytes(8, "little"))
            os._exit(0)
        os.waitpid(intermediate, 0)  # from now on, the command is a child of the tests
        theirs.sendall(os.read(pid_reader, 8))
        for file in (*files, pid_reader, pid_writer):
            os.close(file)


def _execute(files: list[int], argv: list[str], folder: str, environ: dict[str, str], new_session: bool) -> None:
    """Run `python *argv` in this process and exit with its status."""
    network, _, *argv = argv
    status = 1
    try:
        if network:
            with open(f"/run/netns/{network}") as namespace:
                assert ctypes.CDLL(None).setns(namespace.fileno(), _CLONE_NEWNET) == 0
        if new_session:
            os.setsid()
        _keep_only(dict(enumerate(files)))
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
        multiprocessing.util.spawnv_passfds = _fork_the_fork_server  # type: ignore[assignment]
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


_spawn = multiprocessing.util.spawnv_passfds


def _fork_the_fork_server(path: Any, args: Sequence[Any], inherited: Sequence[int]) -> int:
    """Replaces `multiprocessing.util.spawnv_passfds`: a forked fork server already has its imports."""
    if "multiprocessing.forkserver" not in args[-1]:
        return _spawn(path, args, inherited)
    child = os.fork()
    if child:
        return child
    try:
        signal.set_wakeup_fd(-1)
        for stop in signals.STOP_SIGNALS:  # exec would reset handlers, but keep ignored signals ignored
            if signal.getsignal(stop) is not signal.SIG_IGN:
                signal.signal(stop, signal.default_int_handler if stop == signal.SIGINT else signal.SIG_DFL)
        multiprocessing.util.spawnv_passfds = _spawn
        sys.modules["__main__"] = types.ModuleType("__main__")
        _keep_only({0: 0, 1: 1, 2: 2} | {file: file for file in inherited})
        exec(args[-1], {})
    except SystemExit:
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _keep_only(files: dict[int, int]) -> None:
    """Duplicate open files to new descriptors (`files`: new → old), and close all others."""
    if any(new != old for new, old in files.items()):
        copies = {new: os.dup(old) for new, old in files.items()}
        for new, copy in copies.items():
            os.dup2(copy, new)
    for new in files:
        os.set_inheritable(new, new <= 2)
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in files:
            with contextlib.suppress(OSError):  # the descriptor of the listing is closed already
                os.close(int(name))
    signals.wakeup, signals._wakeup_writer = os.pipe()  # the loop has closed the inherited pair


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
