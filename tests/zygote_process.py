"""The zygote: a process that has imported everything once, and forks a command for each request.

`python -m tests.zygote_process SOCKET` reads the requests from the file descriptor SOCKET; see tests/zygote.py.
"""

import contextlib
import ctypes
import gc
import importlib
import io
import multiprocessing.util
import os
import pickle
import signal
import socket
import sys
import tempfile
import traceback
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scaling_fl.runtime import signals

_PRELOADED = (
    "scaling_fl.runtime.preparation", "scaling_fl.runtime.worker", "scaling_fl.runtime.job", "scaling_fl.commands.show_task",
    "scaling_fl.commands.show_shards", "scaling_fl.commands.evaluate", "scaling_fl.tracking.mongo", "sacred", "sacred.run", "dotenv", "git", "gridfs",
    "s3fs", "gcsfs", "pyarrow.csv", "pyarrow.parquet", "filelock", "transformers.models.auto.modeling_auto",
    "transformers.models.bert.modeling_bert",
)  # fmt: skip
_CLONE_NEWNET = 0x40000000  # <linux/sched.h>


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
