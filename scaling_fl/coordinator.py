"""What worker 0 does besides training: it reports rounds, writes checkpoints, and publishes before a job ends early."""

import json
import shutil
import tempfile
import threading
import time
from pathlib import Path

import torch

from scaling_fl import checkpoint, kept, server
from scaling_fl.behind import Behind
from scaling_fl.best import best_so_far
from scaling_fl.errors import JobFailed, UserError
from scaling_fl.flat import FlatModel
from scaling_fl.metrics import finite_or_text
from scaling_fl.plan import Plan, Send
from scaling_fl.prepare import COMPLETE, checkpoint_header
from scaling_fl.server import ServerState


class Coordinator:
    """Follows the rounds of one worker."""

    def __init__(self, send: Send, plan: Plan, model: FlatModel, block: torch.Tensor, state: ServerState):
        """`block` (1 + moments, size) is the memory of `state`."""
        self._send, self._plan, self._model, self._state = send, plan, model, state
        self._behind = Behind()
        # No memory before the first checkpoint, and none of it new after that: new memory takes ten times as long.
        self._block, self._snapshot = block, torch.empty(block.shape)
        self._published, self._best = state.round, plan.best
        self._results: dict[str, float | str] = {}

    def report(self, results: dict[str, float]) -> None:
        """Log the round, then have its checkpoint written behind the next one, where one is due.

        Raises what the last checkpoint's writing met with.
        """
        config, round_ = self._plan.config, self._state.round
        self._results = finite_or_text(results)
        self._send({"event": "round", "round": round_, "metrics": self._results})
        if config.checkpoints(round_):
            self._publish()

    def _publish(self) -> None:
        """Write the state, of which a copy is taken, since the next round changes it; older checkpoints go after that."""
        config, round_ = self._plan.config, self._state.round
        if config.checkpoints_dir is None or round_ == self._published:
            return
        self._behind.wait()  # it reads the last copy
        best = self._best = best_so_far(config.keep_best, self._best, round_, self._results)
        folder = checkpoint.Checkpoints(config.checkpoints_dir)
        tensors = server.arrays(self._model, self._snapshot.copy_(self._block))
        if config.keep_optimiser:
            tensors |= kept.take(Path(self._plan.folder), round_)
        header = checkpoint_header(self._plan, self._results, best)

        def write() -> None:
            start = time.perf_counter()
            name = folder.save(round_, tensors, header, self._send.progress)
            seconds = time.perf_counter() - start
            self._send({"event": "checkpoint", "round": round_, "path": name, "seconds": seconds})
            if trouble := folder.prune(config.keep_checkpoints, best.round if best else None):
                self._send({"event": "said", "text": f"note: {trouble}"})

        self._behind.do(write)
        self._published = round_

    def stop(self) -> None:
        """The job shall end: publish the last complete round, and hold all others where they are until this ends."""
        self._state.lock.acquire()
        try:
            if not self._plan.config.keep_optimiser:  # the sites' optimisers are in their next round already
                self._publish()
            self._behind.wait()
        except Exception as error:
            failure = error if isinstance(error, UserError) else JobFailed(f"{type(error).__name__}: {error}")
            self._send({"event": "failed", "failure": failure})
        else:
            self._send({"event": "stopped"})
        threading.Event().wait()

    def finish(self) -> None:
        """After the last round: write the global model as a Hugging Face folder, `checkpoints_dir/model`."""
        self._behind.wait()
        if self._best is not None:
            said = f"best round by {self._best.metric}: {self._best.round}, with {self._best.value:.4f}"
            self._send({"event": "said", "text": said})
        if self._plan.config.checkpoints_dir is None:
            return
        self._model.load(self._state.params)
        with tempfile.TemporaryDirectory() as staging:
            shutil.copytree(Path(self._plan.folder) / "model", staging, dirs_exist_ok=True)
            self._model.module.save_pretrained(staging)
            files = {path.name: path.stat().st_size for path in Path(staging).iterdir()}
            (Path(staging) / COMPLETE).write_text(json.dumps({"round": self._state.round, "files": files}))
            folder = checkpoint.Checkpoints(self._plan.config.checkpoints_dir)
            name = folder.put_folder(Path(staging), "model", COMPLETE, self._send.progress)
        self._send({"event": "model", "path": name})
