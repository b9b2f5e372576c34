"""A worker process: it opens what the preparation left, and takes its sites through the rounds."""

import json
import shutil
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

from scaling_fl import checkpoint, models, rounds, tokens
from scaling_fl.behind import Behind
from scaling_fl.federation import Federation
from scaling_fl.flat import FlatModel, Layout
from scaling_fl.memory import SharedMemory
from scaling_fl.metrics import finite_or_text
from scaling_fl.plan import Event, Plan, Send
from scaling_fl.prepare import COMPLETE, checkpoint_header
from scaling_fl.server import SGD, ServerState
from scaling_fl.site import Resident, Site

_PROGRESS_INTERVAL = 0.25  # seconds


def work(send: Send, plan: Plan, rank: int, memory: SharedMemory) -> None:
    """Run worker `rank`. Worker 0 is the coordinator: it reports the rounds and writes the checkpoints."""
    models.quiet()
    torch.set_num_threads(plan.threads)
    folder, device = Path(plan.folder), torch.device(plan.devices[rank])
    if device.type == "cuda":
        torch.cuda.set_device(device)
        models.without_looking_at_masks()
        torch.set_float32_matmul_precision("high" if plan.config.tf32 else "highest")
    module = models.rebuild(folder / "model").to(device)
    federation = Federation(rank, plan.devices, Layout(module).size, memory, folder / "rendezvous")
    if rank == 0 and federation.note:
        send({"event": "said", "text": f"note: {federation.note}"})
    within_reach = federation.row.device == device  # the model trains in the row that is aggregated
    flat = federation.row if within_reach else torch.zeros_like(federation.row, device=device)
    model = FlatModel(module, flat, arbitrary=True)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # where the parameters were before

    # The state is one for all workers of a place; the integer buffers are each worker's own.
    if federation.is_leader:
        model.fill(federation.state, checkpoint.read_state(folder / "state.safetensors")[0])
    else:
        model.fill_integers(checkpoint.read_tensors(folder / "state.safetensors", model.layout.integer_names))
    federation.wait()  # nobody trains before the state is in place
    state = ServerState(federation.state, model.layout.trained, plan.round)

    send, behind = _one_at_a_time(send), Behind()
    snapshot = torch.empty(federation.state.shape)  # no memory before the first checkpoint; none of it new after that
    progress = _Progress(send, rank)
    resident = Resident(
        config=plan.config,
        model=model,
        train=tokens.TokenStore(folder / "train", plan.pad_token_id),
        test=tokens.TokenStore(folder / "test", plan.pad_token_id),
        device=device,
        on_step=progress.step,
    )
    with np.load(folder / "shards.npz") as shards:
        sites = [Site(rank, shards[f"arr_{rank}"], resident)]

    def on_round_end(state: ServerState, results: dict[str, float]) -> None:
        progress.restart(state.round + 1)
        if rank == 0:
            _report(send, plan, model, state, results, snapshot, behind)

    progress.restart(state.round and state.round + 1)
    rounds.run(plan.config, sites, resident, federation, state, SGD(), on_round_end)
    behind.wait()
    if rank == 0 and plan.config.checkpoints_dir is not None:
        _export(send, plan, model, state)
    federation.leave()


def _one_at_a_time(send: Send) -> Send:
    """The connection to the launcher takes one event at a time; threads take turns."""
    turn = threading.Lock()

    def send_in_turn(event: Event) -> None:
        with turn:
            send(event)

    return send_in_turn


def _report(
    send: Send,
    plan: Plan,
    model: FlatModel,
    state: ServerState,
    results: dict[str, float],
    snapshot: torch.Tensor,
    behind: Behind,
) -> None:
    """Log the round, then have its checkpoint written behind the next one, where one is due.

    Of the state, which the next round changes, a copy in `snapshot` is written: into memory that is new each time it
    would take ten times as long. Raises what the last checkpoint's writing met with.
    """
    config, strict_results = plan.config, finite_or_text(results)
    send({"event": "round", "round": state.round, "metrics": strict_results})
    due = state.round % config.checkpoint_every == 0 or state.round == config.num_rounds
    if config.checkpoints_dir is None or state.round == 0 or not due:
        return
    behind.wait()  # it reads the last copy
    url, round_, header = config.checkpoints_dir, state.round, checkpoint_header(plan, strict_results)
    tensors = model.arrays(snapshot.copy_(state.params))

    def write() -> None:
        start = time.perf_counter()
        name = checkpoint.Checkpoints(url).save(round_, tensors, header)
        send({"event": "checkpoint", "round": round_, "path": name, "seconds": time.perf_counter() - start})

    behind.do(write)


def _export(send: Send, plan: Plan, model: FlatModel, state: ServerState) -> None:
    """Write the global model as a Hugging Face folder, `checkpoints_dir/model`."""
    assert plan.config.checkpoints_dir is not None
    model.load(state.params)
    with tempfile.TemporaryDirectory() as staging:
        shutil.copytree(Path(plan.folder) / "model", staging, dirs_exist_ok=True)
        model.module.save_pretrained(staging)
        files = {path.name: path.stat().st_size for path in Path(staging).iterdir()}
        (Path(staging) / COMPLETE).write_text(json.dumps({"round": state.round, "files": files}))
        name = checkpoint.Checkpoints(plan.config.checkpoints_dir).put_folder(Path(staging), "model", last=COMPLETE)
    send({"event": "model", "path": name})


class _Progress:
    """Counts the steps of a round and tells the launcher, a few times a second at most."""

    def __init__(self, send: Send, rank: int):
        self.send, self.rank = send, rank
        self.restart(0)

    def restart(self, round_: int) -> None:
        self.round, self.done, self.sent_at = round_, 0, 0.0

    def step(self) -> None:
        self.done += 1
        if time.monotonic() - self.sent_at > _PROGRESS_INTERVAL:
            self.sent_at = time.monotonic()
            self.send({"event": "progress", "worker": self.rank, "round": self.round, "done": self.done})
