"""Fault injection: a fault strikes once, at a named place in a job, in one of its real processes.

`python tests/chaos/faults.py ARGUMENTS` runs `scripts/train_federated.py ARGUMENTS` with a fault. The environment
variable CHAOS describes it: {"place", "kind", "worker", "round", "marker"}. The fault creates the file `marker` when it
strikes, and doesn't strike if the file exists.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("preparation", "start-up", "training", "aggregation", "evaluation", "checkpoint", "model", "end")
# What the fault does to its own process or to the launcher.
KINDS = ("raise", "memory", "kill", "stop", "launcher SIGKILL", "launcher SIGTERM", "launcher SIGINT")


def strike(fault: dict[str, Any]) -> None:
    """Trigger the fault, unless it has struck before."""
    try:
        Path(fault["marker"]).touch(exist_ok=False)
    except FileExistsError:
        return
    match fault["kind"].split():
        case ["raise"]:
            raise ZeroDivisionError("a bug at site")
        case ["memory"]:
            raise MemoryError("no memory left")
        case ["kill"]:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["stop"]:
            os.kill(os.getpid(), signal.SIGSTOP)
        case ["pause"]:
            time.sleep(8)
        case ["hang"]:
            time.sleep(1000)
        case ["launcher", name, *slow]:
            while "after" in fault and not Path(fault["after"]).exists():
                time.sleep(0.01)
            launcher = int(os.environ["CHAOS_LAUNCHER"])
            os.kill(launcher, getattr(signal, name))
            # Stay at this place until the launcher has asked the processes to stop; "slow" and SIGKILL: for ever.
            while slow or name == "SIGKILL" or not Path(fault["marker"] + " stopping").exists():
                time.sleep(0.01)
            time.sleep(0.5)


def strike_before(owner: Any, name: str, fault: dict[str, Any], when: Callable[..., bool] = lambda *args: True) -> None:
    """Patch the function `owner.name`: the fault strikes before a call for whose arguments `when` is true."""
    original = getattr(owner, name)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if when(*args):
            strike(fault)
        return original(*args, **kwargs)

    setattr(owner, name, wrapper)


def work(send: Any, plan: Any, rank: int, memory: Any) -> None:
    """Run a worker with the fault."""
    from scaling_fl.checkpoint import store
    from scaling_fl.distributed.collectives import Collectives
    from scaling_fl.federated import round_evaluation, site
    from scaling_fl.models.flat_parameters import FlatModel
    from scaling_fl.runtime import worker

    fault = json.loads(os.environ["CHAOS"])
    current_round = 0
    if fault["place"] == "checkpoint" and rank == 0:
        strike_before(store.CheckpointStore, "_publish", fault, lambda *args: current_round >= fault["round"])
    elif fault["place"] == "model" and rank == 0:
        strike_before(store.CheckpointStore, "publish_folder", fault)
    elif fault["place"] == "end" and rank == 0:
        strike_before(Collectives, "close", fault)
    elif rank == fault["worker"]:
        in_round = lambda *args: current_round == fault["round"]  # noqa: E731
        match fault["place"]:
            case "start-up":
                strike_before(worker, "Collectives", fault)
            case "training":
                strike_before(FlatModel, "load", fault, in_round)
            case "aggregation":
                weighted_mean = Collectives.weighted_mean

                def interrupted_mean(self: Collectives, total: Any) -> Iterator[Any]:
                    for piece in weighted_mean(self, total):
                        yield piece  # the server has stepped with this piece
                        if in_round():
                            strike(fault)

                Collectives.weighted_mean = interrupted_mean  # type: ignore[method-assign]
            case "evaluation":
                strike_before(round_evaluation, "evaluate", fault, in_round)
    train = site.Site.train

    def train_and_note_round(self: Any, params: Any, round_: int, *more: Any) -> Any:
        nonlocal current_round
        current_round = round_
        return train(self, params, round_, *more)

    site.Site.train = train_and_note_round  # type: ignore[method-assign]
    worker.work(send, plan, rank, memory)


def prepare(send: Any, *job: Any) -> None:
    """Run the preparation with the fault."""
    from scaling_fl.runtime import preparation

    fault = json.loads(os.environ["CHAOS"])
    if fault["place"] == "preparation":
        strike_before(preparation, "make_shards", fault)
    preparation.prepare(send, *job)


def main() -> None:
    sys.path.insert(0, str(ROOT))
    sys.path.insert(1, str(ROOT / "scripts"))
    os.environ["CHAOS_LAUNCHER"] = str(os.getpid())
    from scaling_fl.runtime import fork_server, launcher

    fork_server.start()  # before any other import, like the command
    import train_federated

    from scaling_fl.tracking import mongo

    run_children, database = launcher.run_children, mongo.MongoEntry._database
    marker, training = json.loads(os.environ["CHAOS"])["marker"], False

    def run_children_with_fault(
        target: str, jobs: Any, names: Any, folder: str, on_event: Any, *args: Any, **more: Any
    ) -> None:
        def watch(event: dict[str, Any]) -> None:
            on_event(event)
            if event.get("text", "").startswith("stopping: "):
                Path(f"{marker} stopping").touch()

        nonlocal training
        training = target.endswith(":work")
        try:
            run_children("tests.chaos.faults:" + target.partition(":")[2], jobs, names, folder, watch, *args, **more)
        finally:
            training = False

    def watched_database(self: Any) -> Any:
        if training and threading.current_thread() is threading.main_thread():  # the thread that handles the rounds
            Path(f"{marker} waits for MongoDB").touch()
        return database(self)

    mongo.MongoEntry._database = watched_database  # type: ignore[method-assign]
    launcher.run_children = run_children_with_fault
    train_federated.main(sys.argv)


if __name__ == "__main__":
    main()
