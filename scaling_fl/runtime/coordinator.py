"""The coordinator, worker 0: it reports rounds, writes checkpoints, and saves one before a job ends early."""

import contextlib
import tempfile
import threading
import time
from collections import ChainMap
from pathlib import Path

import torch

from scaling_fl import state_file
from scaling_fl.checkpoint import final_model
from scaling_fl.checkpoint.header import checkpoint_header
from scaling_fl.checkpoint.history import History
from scaling_fl.checkpoint.model_card import model_card
from scaling_fl.checkpoint.store import CheckpointStore
from scaling_fl.errors import JobFailed, UserError
from scaling_fl.federated.best_round import best_so_far
from scaling_fl.federated.metrics import finite_or_text
from scaling_fl.federated.run_plan import Plan
from scaling_fl.federated.server_state import ServerState, parameters, state_arrays
from scaling_fl.federated.site_state import SiteStateStore
from scaling_fl.models.flat_parameters import FlatModel
from scaling_fl.progress import Send, waiting
from scaling_fl.runtime.background import BackgroundWriter


class Coordinator:
    """Reports the rounds of worker 0, and saves checkpoints and the final model."""

    def __init__(
        self,
        send: Send,
        plan: Plan,
        model: FlatModel,
        block: torch.Tensor,
        state: ServerState,
        store: SiteStateStore | None,
    ):
        """`block` (1 + moments, size) is the memory of `state`; `store` holds the site state, if sites keep any."""
        self._send, self._plan, self._model, self._state, self._store = send, plan, model, state, store
        self._writer = BackgroundWriter()
        # Reserved once: copying into fresh pages takes ten times as long. A GPU copies several times as fast into
        # pinned memory.
        kept = block.shape if plan.config.checkpoints_dir is not None else (0,)
        self._block, self._snapshot = block, _reserve(tuple(kept), pinned=block.is_cuda)
        self._best = plan.best
        # The last round reported, and the last round saved with its report.
        self._reported = self._saved = state.round if plan.reported else -1
        self._results: dict[str, float | str] = {}
        self._history = History(plan.history)

    def report(self, results: dict[str, float]) -> None:
        """Log the round; if a checkpoint is due, write it in the background of the next round.

        Raises the error of the last checkpoint if writing it has failed.
        """
        self._writer.check()
        config, round_ = self._plan.config, self._state.round
        self._results, self._reported = finite_or_text(results), round_
        self._history.add(round_, self._results)
        confusion = {name: matrix.tolist() for name, matrix in self._state.confusion.items()}
        self._state.confusion = {}
        self._send({"event": "round", "round": round_, "metrics": self._results, "confusion": confusion})
        if self._state.predictions is not None:
            self._send(
                {
                    "event": "predictions", "round": round_, "predictions": self._state.predictions,
                    "folder": self._plan.folder,
                }
            )  # fmt: skip
        if self._state.generations:
            self._send({"event": "generations", "round": round_, "rows": self._state.generations})
        if config.checkpoint_due(round_):
            self._save()

    def _save(self) -> None:
        """Write a snapshot of the state, since the next round changes it, then prune older checkpoints."""
        config, round_ = self._plan.config, self._state.round
        if config.checkpoints_dir is None or round_ == self._saved:
            return
        self._writer.wait()  # it reads the previous snapshot
        reported = self._reported == round_
        results = self._results if reported else finite_or_text(self._state.results)
        best = self._best = best_so_far(config.keep_best, self._best, round_, results)
        folder = CheckpointStore(config.checkpoints_dir)
        tensors: state_file.Arrays = state_arrays(self._model, self._snapshot.copy_(self._block))
        if self._store is not None:
            tensors = ChainMap(dict(tensors), self._store.as_of(round_))  # type: ignore[arg-type] # only read
        header = checkpoint_header(self._plan, results, best, reported, self._history.before(round_))

        def write() -> None:
            start = time.perf_counter()
            name = folder.save(round_, tensors, header, self._send.progress)
            seconds = time.perf_counter() - start
            self._send({"event": "checkpoint", "round": round_, "path": name, "seconds": seconds})
            # The second is a fallback in case the newest is damaged.
            self._prune(2 if config.keep_checkpoints is None else config.keep_checkpoints)

        self._writer.submit(write)
        self._saved = round_

    def _prune(self, keep: int) -> None:
        """Remove all checkpoints but the newest `keep` and the best."""
        folder = CheckpointStore(str(self._plan.config.checkpoints_dir))
        if trouble := folder.prune(keep, self._best.round if self._best else None):
            self._send({"event": "said", "text": f"note: {trouble}"})

    def stop(self) -> None:
        """Save the last complete round before the job ends, holding the server state's lock until the process ends.

        If that round is not evaluated yet, its checkpoint says so, and the resumed job starts with the evaluation.
        """
        self._state.lock.acquire()
        try:
            if self._state.round > 0 and not self._state.partly_updated:  # partly updated: aggregation failed half-way
                self._save()
            self._writer.wait()
        except Exception as error:
            failure = error if isinstance(error, UserError) else JobFailed(f"{type(error).__name__}: {error}")
            self._send({"event": "failed", "failure": failure})
        else:
            self._send({"event": "stopped"})
        threading.Event().wait()

    def finish(self) -> None:
        """After the last round: write Hugging Face folders (key `export`), and leave the checkpoints that are kept."""
        self._writer.wait()
        config, round_ = self._plan.config, self._state.round
        if self._best is not None:
            said = f"best round by {self._best.metric}: {self._best.round}, with {self._best.value:.4f}"
            self._send({"event": "said", "text": said})
        if config.checkpoints_dir is None:
            return
        checkpoints = CheckpointStore(config.checkpoints_dir)
        for name, exported in final_model.folders(config, round_, self._best).items():  # `model` before `model-best`
            if exported == round_:
                self._model.load(self._state.params)
            else:
                with tempfile.TemporaryDirectory() as copy, waiting(self._send, not checkpoints.local):
                    tensors, _ = checkpoints.fetch(exported, Path(copy) / "state.safetensors")
                self._model.fill(self._model.flat, parameters(tensors))
            results = self._history.before(exported + 1).get(str(exported), {})
            card = model_card(
                config, self._plan.label_names, self._plan.num_sites, exported, results, self._plan.pad_to
            )
            prepared = Path(self._plan.folder) / "model"
            path = final_model.publish(
                checkpoints, name, exported, self._model.module, prepared, card, config.merge, self._plan.base_dtype,
                self._send.progress,
            )  # fmt: skip
            self._send({"event": "model", "path": path})
        if config.keep_checkpoints is None:
            self._prune(1)


def _reserve(shape: tuple[int, ...], pinned: bool) -> torch.Tensor:
    """Host memory, pinned if that is wanted and permitted: WSL2 and limits on locked memory refuse it."""
    with contextlib.suppress(RuntimeError):
        return torch.empty(shape, pin_memory=pinned)
    return torch.empty(shape)
