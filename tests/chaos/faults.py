"""Fault injection: a fault strikes once, at a named place of a job, in one of its real processes.

`python tests/chaos/faults.py ARGUMENTS` is `scripts/train_federated.py ARGUMENTS` with the fault that the variable
CHAOS describes: {"place", "how", "worker", "round", "marker"}. The fault creates the file `marker` when it strikes, and
doesn't strike if the file exists.
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
# What happens, to the process itself or to the launcher.
HOWS = ("raise", "memory", "kill", "stop", "launcher SIGKILL", "launcher SIGTERM", "launcher SIGINT")


def strike(fault: dict[str, Any]) -> None:
    """Let the fault happen, unless it already has."""
    try:
        Path(fault["marker"]).touch(exist_ok=False)
    except FileExistsError:
        return
    match fault["how"].split():
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
            launcher = int(os.environ["CHAOS_LAUNCHER"])
            os.kill(launcher, getattr(signal, name))
            # So that the signal arrives here, this process goes on only after it was asked to stop, or never.
            while slow or name == "SIGKILL" or not Path(fault["marker"] + " stopping").exists():
                time.sleep(0.01)
            time.sleep(0.5)


def before(owner: Any, name: str, fault: dict[str, Any], when: Callable[..., bool] = lambda *args: True) -> None:
    """Let the fault strike when `owner.name` is called."""
    plain = getattr(owner, name)

    def struck(*args: Any, **kwargs: Any) -> Any:
        if when(*args):
            strike(fault)
        return plain(*args, **kwargs)

    setattr(owner, name, struck)


def work(send: Any, plan: Any, rank: int, memory: Any) -> None:
    """A worker with the fault."""
    from scaling_fl.checkpoint import store
    from scaling_fl.distributed.collectives import Collectives
    from scaling_fl.federated import rounds, site
    from scaling_fl.models.flat_parameters import FlatModel
    from scaling_fl.runtime import worker

    fault = json.loads(os.environ["CHAOS"])
    now = {"round": 0, "steps": 0}
    if fault["place"] == "checkpoint" and rank == 0:
        before(store.CheckpointStore, "_publish", fault, lambda *args: now["round"] >= fault["round"])
    elif fault["place"] == "model" and rank == 0:
        before(store.CheckpointStore, "publish_folder", fault)
    elif fault["place"] == "end" and rank == 0:
        before(Collectives, "close", fault)
    elif rank == fault["worker"]:
        here = lambda *args: now["round"] == fault["round"]  # noqa: E731
        match fault["place"]:
            case "start-up":
                before(worker, "Collectives", fault)
            case "training":
                before(FlatModel, "load", fault, here)
            case "aggregation":
                mean = Collectives.weighted_mean

                def torn(self: Collectives, total: Any) -> Iterator[Any]:
                    for part in mean(self, total):
                        yield part  # the server has stepped with this piece
                        if here():
                            strike(fault)

                Collectives.weighted_mean = torn  # type: ignore[method-assign]
            case "evaluation":
                before(rounds, "evaluate", fault, here)
    train = site.Site.train

    def counted(self: Any, params: Any, round_: int) -> Any:
        now["round"] = round_
        return train(self, params, round_)

    site.Site.train = counted  # type: ignore[method-assign]
    worker.work(send, plan, rank, memory)


def prepare(send: Any, *job: Any) -> None:
    """The preparation with the fault."""
    from scaling_fl.runtime import preparation as module

    fault = json.loads(os.environ["CHAOS"])
    if fault["place"] == "preparation":
        before(module, "make_shards", fault)
    module.prepare(send, *job)


def main() -> None:
    sys.path.insert(0, str(ROOT))
    sys.path.insert(1, str(ROOT / "scripts"))
    os.environ["CHAOS_LAUNCHER"] = str(os.getpid())
    from scaling_fl.runtime import launcher

    launcher.start_fork_server()  # as the command does it: first
    import train_federated

    plain = launcher.run_children

    from scaling_fl.tracking import mongo

    marker, trains = json.loads(os.environ["CHAOS"])["marker"], False

    def run(target: str, jobs: Any, names: Any, folder: str, on_event: Any, *args: Any) -> None:
        def noted(event: dict[str, Any]) -> None:
            on_event(event)
            if event.get("text", "").startswith("stopping: "):
                Path(f"{marker} stopping").touch()

        nonlocal trains
        trains = target.endswith(":work")
        try:
            plain("tests.chaos.faults:" + target.partition(":")[2], jobs, names, folder, noted, *args)
        finally:
            trains = False

    def database(self: Any) -> Any:
        if trains and threading.current_thread() is threading.main_thread():  # which passes the rounds on
            Path(f"{marker} waits for MongoDB").touch()
        return plain_database(self)

    plain_database = mongo.MongoEntry._database
    mongo.MongoEntry._database = database  # type: ignore[method-assign]

    launcher.run_children = run
    train_federated.main(sys.argv)


if __name__ == "__main__":
    main()
