"""The fork server: a process that has imported torch and transformers once, from which all children are forked."""

import atexit
import contextlib
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import sys
import tempfile
import types
from collections.abc import Iterator
from typing import Any

from scaling_fl.errors import UserError
from scaling_fl.runtime import signals

# Environment variables that the children's libraries read at start-up, chosen by measurement (benchmarks/README.md).
LIBRARY_ENVIRONMENT = {
    # Threads that spin for long take the core from another site's thread that has work. Without any spinning, the
    # step of a lone site takes 5 % longer. So threads spin briefly.
    "GOMP_SPINCOUNT": "10000",
    # Tensors from 2 MiB on huge pages: a step on few tokens, which is bound by reading weights, takes 20 % less time.
    "THP_MEM_ALLOC_ENABLE": "1",
    # Keep freed memory for the next step instead of requesting new pages from the system.
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    # No warnings about addresses without a host name.
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    # Packages that look for a GPU when they are imported, such as flash-attn, ask the driver's library instead of starting
    # CUDA in the fork server: no child could use a GPU then.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    # The entries of `site_ids` are nvidia-smi's numbers.
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    # Batches of many lengths leave less memory unused between allocations. The rows that sites share come from the driver.
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    # NCCL's watchdog would end a healthy process before the cause of a failure is known; the launcher watches all processes.
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
}
# A variable stays unset if the user has set the other.
_ALTERNATIVES = {"GOMP_SPINCOUNT": "OMP_WAIT_POLICY", "PYTORCH_ALLOC_CONF": "PYTORCH_CUDA_ALLOC_CONF"}


def start(adapters: bool = False) -> None:
    """Start the fork server early, without waiting for it. Otherwise `running` starts it. It ends with this process.

    `adapters`: whether the job needs peft. What the server hasn't imported, each process must, with memory of its own.
    """
    atexit.register(_end)
    with contextlib.suppress(UserError):  # `running` reports it
        running(adapters)


def running(adapters: bool = False) -> Any:
    """The context of the fork server, which the first call starts. Raises `UserError` if it can't be started."""
    for name, value in LIBRARY_ENVIRONMENT.items():
        if name not in os.environ and _ALTERNATIVES.get(name, name) not in os.environ:
            os.environ[name] = value
    context = multiprocessing.get_context("forkserver")
    preloaded = [
        "scaling_fl.runtime.preloading",
        "scaling_fl.runtime.preparation",
        "scaling_fl.runtime.worker",
        *["scaling_fl.models.peft_alone"] * adapters,
    ]
    context.set_forkserver_preload([*preloaded, "scaling_fl.runtime.preloaded"])
    before = os.environ.get("PYTHONPATH")
    multiprocessing.resource_tracker.ensure_running()  # first, because it changes the blocked signals
    # Only the launcher handles stop signals. The fork server inherits the blocked mask, and ends with the launcher. A
    # signal that arrives meanwhile is delivered afterwards.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signals.STOP_SIGNALS)
    try:
        # The server doesn't inherit sys.path, and silently skips preload modules that it can't find.
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*sys.path, before]))
        multiprocessing.forkserver.ensure_running()
    except OSError as error:
        raise UserError(
            f"TMPDIR={tempfile.gettempdir()}: can't create a socket there ({error}); choose another folder for temporary "
            "files, with a short path"
        ) from error
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)  # last, because a pending signal is raised here
    return context


def _end() -> None:
    """End the fork server, which may still be importing: until it ends, readers of the command's output wait for more."""
    pid = multiprocessing.forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def hidden_main() -> Iterator[None]:
    """Keep children from importing the main module again, and with it Sacred."""
    main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
