"""A process that writes checkpoints until it is killed: `python -m tests.checkpoint.writer URL MOMENT`."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from scaling_fl.checkpoint import storage
from scaling_fl.checkpoint.store import CheckpointStore

SIZE = 250_000  # float32 values: 1 MB, many packets


def state(round_: int) -> dict[str, Any]:
    """A different state for each round."""
    return {"w": np.arange(SIZE, dtype=np.float32) + round_}


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(url: str, moment: str) -> None:
    """Print each published round. Kills itself at the `moment` of round 3, or "never"."""
    checkpoints = CheckpointStore(url)
    checkpoints.probe()
    sync = storage._sync
    for round_ in range(1, 10_000):
        if round_ == 3:
            if moment == "before the rename":
                os.replace = die
            elif moment == "after the rename":
                storage._sync = lambda path: die() if path == Path(checkpoints.root) else sync(path)
            elif moment == "during fsync":
                storage._sync = die
        checkpoints.save(round_, state(round_), {"metrics": {}})
        print(round_, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
