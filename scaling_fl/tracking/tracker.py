"""The observer that writes a job's event file: Sacred reports start and end, and the workers everything in between."""

import base64
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from sacred.observers import RunObserver

from scaling_fl.config.partition_keys import chosen_partition
from scaling_fl.errors import UserError
from scaling_fl.federated import cohort
from scaling_fl.federated.run_plan import Plan
from scaling_fl.progress import Event
from scaling_fl.tracking import events
from scaling_fl.tracking.events import EventLog
from scaling_fl.tracking.record import Record
from scaling_fl.tracking.replay import Attach, Replay, Target, nothing

_END_TIMEOUT = 8.0  # seconds that the end of a job waits for the targets


class Tracker(RunObserver):  # type: ignore[misc]
    """The only observer of the Sacred run. It appends to the event file, which is replayed into the targets."""

    def __init__(
        self,
        log: EventLog,
        plan: Plan,
        targets: Iterable[Target],
        say: Callable[[str], None],
        attach: Attach = nothing,
    ):
        """`attach` makes further artifacts of a completed job; it may take longer than targets may."""
        self._log, self._plan, self._say, self._attach = log, plan, say, attach
        self.replays = [Replay(log.path, target, attach) for target in targets]
        self._troubled: set[str] = set()
        self._ended = False
        self._confusion: dict[str, Any] = {}  # the last evaluation; recorded once, because it can be large
        log.on_append = self._notice

    def _notice(self, event: str) -> None:
        for replay in self.replays:
            replay.notify()

    def started_event(
        self,
        ex_info: Mapping[str, Any],
        command: str,
        host_info: Mapping[str, Any],
        start_time: Any,
        config: Mapping[str, Any],
        meta_info: Mapping[str, Any],
        _id: Any,
    ) -> None:
        plan = self._plan
        table = [
            {"site": site, "examples": size, "label_entropy_bits": round(entropy, 6)}
            | ({"device": plan.devices[site]} if plan.one_site_per_worker else {})
            | ({"label_counts": plan.label_counts[site]} if plan.label_counts else {})
            | ({"attack": plan.config.attack} if site in plan.attackers else {})
            for site, (size, entropy) in enumerate(zip(plan.shard_sizes, plan.shard_entropies, strict=True))
        ]
        for name, _ in ex_info["sources"]:
            text = (Path(ex_info["base_dir"]) / name).read_text(errors="replace")
            if self._log.sources.get(name) != text:
                self._log.append("source", name=name, text=text)
        experiment = {name: value for name, value in ex_info.items() if name != "sources"}
        if not experiment.get("repositories") and (commit := os.environ.get("SCALING_FL_COMMIT")):
            # An image contains no repository, but its build stores the commit.
            dirty = commit.endswith("-dirty")
            experiment["repositories"] = [{"url": "", "commit": commit.removesuffix("-dirty"), "dirty": dirty}]
        # Sacred names the repository once for each source file, and only the packages that this process imported.
        repositories = experiment.get("repositories") or []
        experiment["repositories"] = [one for index, one in enumerate(repositories) if one not in repositories[:index]]
        experiment["dependencies"] = _installed()
        sacred = {"experiment": experiment, "command": command, "host": host_info, "meta": meta_info}
        self._log.append(
            "started",
            sacred=json.loads(json.dumps(sacred, default=str)),
            config=plan.config.to_record(),
            start={
                "host": socket.gethostname(),
                "after_round": plan.round,
                "environment": dict(plan.environment),
                "devices": sorted(set(plan.devices)),
            },
            info={
                "label_names": list(plan.label_names),
                "threads_per_site": plan.threads,
                "num_parameters": plan.num_parameters,
                "data_digest": plan.data_digest,
                "resolved": _resolved(plan),
            },
        )
        self._log.append("shards", shards=table)
        self._log.restore(plan.history)
        for replay in self.replays:
            replay.start()
        # No id: Sacred would print it as the run's, beside the record's number.

    def event(self, event: Event) -> None:
        """Append an event of a worker."""
        self._report_troubles()
        match event["event"]:
            case "round":
                self._log.append("round", round=event["round"], metrics=event["metrics"])
                if sets := event.get("confusion"):
                    self._confusion = {"round": event["round"], "sets": sets}
            case "predictions":
                self._append_predictions(event)
            case "generations":
                self._log.append("generations", round=event["round"], rows=event["rows"])
            case "checkpoint":
                self._log.append("checkpoint", round=event["round"], path=event["path"], seconds=event["seconds"])
            case "model":
                self._log.append("model", path=event["path"])

    def _append_predictions(self, event: Event) -> None:
        """Append the predictions as a file. A failure is a note: no job fails for its report."""
        try:
            from scaling_fl.tracking import predictions_file  # not before the last round: it imports pyarrow

            # A restart has another work folder than the first attempt.
            content = predictions_file.content(Path(event["folder"]), self._plan.label_names, event["predictions"])
        except Exception as error:  # whatever pyarrow raises
            self._say(f"note: the predictions can't be recorded ({type(error).__name__}: {error}); the job goes on")
            return
        self._log.append("predictions", round=event["round"], parquet=base64.b64encode(content).decode())

    def output(self, line: str) -> None:
        """Append a line of the console."""
        if not self._ended:
            self._log.append("output", text=line)

    def restarted(self, reason: str) -> None:
        """Record that all workers were restarted after a failure."""
        self._log.append("restarted", reason=reason)

    def completed_event(self, stop_time: Any, result: Any) -> None:
        self._end("completed")

    def interrupted_event(self, interrupt_time: Any, status: str) -> None:
        self._end("interrupted")

    def failed_event(self, fail_time: Any, fail_trace: list[str]) -> None:
        self._end("failed", trace=fail_trace)

    def runs(self) -> str:
        """The job's records, for the message of a run that the lease refuses."""
        return ", ".join(place for replay in self.replays if (place := replay.target.location()))

    def locations(self) -> dict[str, str]:
        """Where the job is recorded, by title."""
        locations = {"events": str(self._log.path)}
        for target in (replay.target for replay in self.replays):
            if target.location():
                locations[target.title] = ", ".join(filter(None, (locations.get(target.title), target.location())))
        return locations

    def _end(self, how: str, **fields: Any) -> None:
        """Append the end, and wait briefly for the targets."""
        self._ended = True
        with contextlib.suppress(UserError):  # the disk is full, as already reported
            if self._confusion:
                self._log.append("confusion", **self._confusion)
            self._log.append(how, **fields)
            if how == "completed":
                self._attach(Record.from_events(events.read(self._log.path)[0]))
        for replay in self.replays:
            replay.finish()
        deadline = time.monotonic() + _END_TIMEOUT
        for replay in self.replays:
            if not replay.wait(max(0.0, deadline - time.monotonic())):
                self._say(
                    f"{replay.describe_trouble()}; `sync with job_name={self._plan.config.job_name}` brings it up to date"
                )
        self._log.close()

    def _report_troubles(self) -> None:
        """Print a note once when a target fails, and once when it is up to date again."""
        for replay in self.replays:
            name, troubled = replay.target.name, replay.trouble is not None
            if troubled and name not in self._troubled:
                self._troubled.add(name)
                self._say(
                    f"note: {replay.describe_trouble()}; training continues, and the missing entries "
                    "will be written later"
                )
            elif not troubled and name in self._troubled:
                self._troubled.discard(name)
                self._say(f"note: {name} is up to date again")


def _installed() -> list[str]:
    """All installed packages, from the names of their folders: reading the metadata of each takes a second or more."""
    folders = {folder.stem for path in sys.path for folder in Path(path).glob("*.dist-info")}
    return sorted("==".join(folder.replace("_", "-").rsplit("-", 1)) for folder in folders)


def _resolved(plan: Plan) -> dict[str, Any]:
    """The values that a run has for keys that are unset or automatic, so that runs can be grouped by them."""
    keys = plan.config.to_mapping()
    return {
        "num_sites": plan.num_sites,
        "sites_per_round": cohort.size(plan.config, plan.num_sites),
        "partition": chosen_partition(keys),
        "threads_per_site": plan.threads,
        "precision": plan.environment.get("precision"),
        "devices": sorted(set(plan.devices)),
        "processes": len(plan.devices),
    }
