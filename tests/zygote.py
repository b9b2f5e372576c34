"""Run commands without paying for their imports: fork each from a zygote, a process that has imported everything once.

A forked command behaves like one started from a shell: it is a child of the tests, has its own arguments, environment,
folder and pipes, and runs the script from its first line. Its fork server is forked from it, too. `popen` starts a new
interpreter instead if the environment differs in a variable that libraries read on import, or with `cold=True`.
"""

import atexit
import ctypes
import inspect
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scaling_fl.runtime import fork_server

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "train_federated.py"

# Variables that no library reads on import: free to differ between commands forked from the same zygote.
_FREE_PREFIXES = ("SACRED_", "AWS_", "CHAOS", "PYTEST_", "SCALING_FL_", "AIP_", "GCSFS_")
_FREE_VARIABLES = {
    "TMPDIR", "CLUSTER_SPEC", "STORAGE_EMULATOR_HOST", "TEST_BUCKET", "PYTHONUNBUFFERED", "MASTER_ADDR", "MASTER_PORT",
    "WORLD_SIZE", "RANK", "TOKENIZERS_PARALLELISM",
}  # fmt: skip
_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>


def popen(
    *arguments: str, script: Path = SCRIPT, cold: bool = False, network: str = "", **options: Any
) -> "subprocess.Popen[str]":
    """Like `subprocess.Popen([python, script, *arguments], **options)`, in the network namespace `network` if given.

    A key that is set twice takes the later value: tests override the keys of a fixture. The command itself refuses it.
    """
    words = arguments if script.name == "sweep.py" else last_values(without_page(arguments))
    argv, environ = [sys.executable, str(script), *words], options.get("env") or os.environ
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
    free = _FREE_VARIABLES | fork_server.LIBRARY_ENVIRONMENT.keys()
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
                [sys.executable, "-m", "tests.zygote_process", str(theirs.fileno())], cwd=ROOT, pass_fds=[theirs.fileno()],
                env=self.environ | fork_server.LIBRARY_ENVIRONMENT | {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"},
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
