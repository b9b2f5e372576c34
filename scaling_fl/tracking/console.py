"""What the user sees: the plan, progress bars, and a table row for each round."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from scaling_fl.federated import cohort
from scaling_fl.federated.run_plan import Plan
from scaling_fl.progress import Event

# (width, heading, metric, format): 80 characters with the round.
_COLUMNS = (
    (8, "loss", "train.loss", "{:.4f}"),
    (6, "acc", "train.accuracy", "{:.3f}"),
    (6, "worst", "train.worst_site.accuracy", "{:.3f}"),
    (6, "best", "train.best_site.accuracy", "{:.3f}"),
    (9, "loss", "validation.loss", "{:.4f}"),
    (6, "acc", "validation.accuracy", "{:.3f}"),
    (6, "F1", "validation.macro_f1", "{:.3f}"),
    (9, "per s", "examples_per_second", "{:.1f}"),
    (7, "train", "seconds.train", "{:.1f}"),
    (6, "aggr", "seconds.aggregate", "{:.2f}"),
    (6, "eval", "seconds.evaluate", "{:.1f}"),
)
_GROUPS = f"{'train: sites':>31}{'test: global':>21}{'examples':>9}{'seconds':>19}"
_MAX_SITES_SHOWN = 16
_SECONDS_BETWEEN_LINES = 10


class Console:
    """Prints to `sys.stdout`, which Sacred captures. The bar goes to the real stderr, which it doesn't capture."""

    def __init__(self) -> None:
        self._terminal = RichConsole(file=sys.__stderr__)
        self._bar: Progress | None = None
        self._round = -1  # of the bar or the last row
        self._done: dict[Any, int] = {}
        self.listener: Callable[[str], None] = lambda text: None  # called with every line
        self._step, self._printed = "", 0.0  # the preparation's current step, and when it was last printed

    def line(self, text: str = "") -> None:
        """Print a line, above the bar if there is one."""
        bar, self._bar = self._bar, None
        try:
            if bar is not None:
                bar.stop()
            print(text, flush=True)
        except OSError:  # the terminal is closed, or Ctrl-C also ended `tee`
            for descriptor in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        self.listener(text)
        if bar is not None:
            bar.start()
            self._bar = bar

    def plan(self, plan: Plan) -> None:
        """Print the plan and the head of the table."""
        config, devices = plan.config, sorted(set(plan.devices))
        through = "shared memory" if devices == ["cpu"] else "the memory of the GPU"
        through += ", NCCL between GPUs" * (len(devices) > 1)
        sites = (f"baseline {config.baseline}: " if config.baseline else "") + _number(plan.num_sites, "site")
        if not plan.one_site_per_worker:
            sites += f", {cohort.size(config, plan.num_sites):,} a round, in {_number(len(plan.devices), 'process')}"
        if plan.nodes:
            sites += f" on {len(set(plan.nodes))} nodes ({_number(len(plan.ranks_here), 'process')} here)"
            through += ", then over the network by one process per node"
        self.line(
            f"{sites} on {', '.join(devices)}, {_number(plan.threads, 'thread')} each; "
            f"aggregation through {through}, control over gloo"
        )
        if plan.node > 0:
            self.line(f"this is node {plan.node}: node 0 shows the rounds, and keeps records and checkpoints")
            return
        head = f", new: {', '.join(plan.new_parameters[:4])}{', …' * (len(plan.new_parameters) > 4)}"
        self.line(
            f"model {config.model}: {plan.architecture}, {plan.num_parameters / 1e6:.1f} M parameters"
            + (head if plan.new_parameters else ", its classification head kept")
        )
        self.line(
            f"task {config.task_name}: {plan.num_train:,} training and {plan.num_test:,} test examples, "
            f"{len(plan.label_names)} classes; "
            f"{plan.num_truncated:,} training texts reach max_seq_len={config.max_seq_len}"
        )
        sizes, entropies = plan.shard_sizes, plan.shard_entropies
        device = "  device" if plan.one_site_per_worker else ""
        self.line(f"{'site':>4}  {'examples':>8}  {'label entropy':>13}  {'steps/round':>11}{device}")
        for site in range(min(len(sizes), _MAX_SITES_SHOWN)):
            where = f"  {plan.devices[site]}" if plan.one_site_per_worker else ""
            self.line(
                f"{site:>4}  {sizes[site]:>8,}  {entropies[site]:>8.3f} bits  {plan.local_steps(site):>11,}{where}"
            )
        if len(sizes) > _MAX_SITES_SHOWN:
            self.line(
                f"   … and {len(sizes) - _MAX_SITES_SHOWN:,} more; examples per site: {min(sizes):,} to "
                f"{max(sizes):,}, median {sorted(sizes)[(len(sizes) - 1) // 2]:,}"
            )
        if plan.round:
            self.line(f"job {config.job_name} resumes after round {plan.round}")
        self.line()
        self.line(_GROUPS)
        self.line("round" + "".join(f"{heading:>{width}}" for width, heading, _, _ in _COLUMNS))

    def event(self, event: Event, plan: Plan | None = None) -> None:
        """Show an event of the preparation or of a worker."""
        match event["event"]:
            case "said":
                self._clear()
                self.line(event["text"])
            case "working":
                self._working(event["what"], event["done"], event["total"], event["unit"])
            case "output":
                self.line(f"{event['source']} | {event['text']}")
            case "round":
                self._clear()
                self._round = event["round"]
                self.line(table_row(event["round"], event["metrics"]))
            case "progress" if plan is not None:
                self._progress(event, plan)

    def close(self) -> None:
        """Remove the bar."""
        self._clear()

    def _progress(self, event: Event, plan: Plan) -> None:
        if not self._terminal.is_terminal or event["round"] < self._round:
            return
        if event["round"] > self._round:
            self._clear()
            self._round = event["round"]
        elif self._bar is None:  # progress that arrives after the round's row
            return
        if self._bar is None:
            total = plan.round_steps(event["round"]) + plan.evaluation_steps * plan.config.evaluation_due(
                event["round"]
            )
            self._bar = self._new_bar(f"round {event['round']}/{plan.config.num_rounds}", total, "steps")
        self._done[event["worker"]] = event["done"]
        self._bar.update(self._bar.task_ids[0], completed=sum(self._done.values()))

    def _working(self, what: str, done: float, total: float, unit: str) -> None:
        """Show progress of the preparation: a bar, or without a terminal a line every few seconds."""
        if what != self._step:
            self._clear()
            self._step, self._printed = what, time.monotonic()
        if not self._terminal.is_terminal:
            if time.monotonic() - self._printed > _SECONDS_BETWEEN_LINES:
                self._printed = time.monotonic()
                self.line(f"{what}: {done:,.0f} of {total:,.0f} {unit}")
        elif done < total:
            self._bar = self._bar or self._new_bar(what, total, unit)
            self._bar.update(self._bar.task_ids[0], completed=done, refresh=True)
        else:
            self._clear()

    def _new_bar(self, what: str, total: float, unit: str) -> Progress:
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            console=self._terminal,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        bar.add_task(what, total=total)
        bar.start()
        return bar

    def _clear(self) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.stop()
        self._bar, self._done = None, {}


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun if count == 1 else 'processes' if noun == 'process' else noun + 's'}"


def table_row(round_: int, results: Mapping[str, Any]) -> str:
    """One round as a line of the table; blank where it has no value."""
    cells = []
    for width, _, name, form in _COLUMNS:
        value = results.get(name)
        text = "" if value is None else value if isinstance(value, str) else form.format(value)
        cells.append(f"{text:>{width}}")
    return f"{round_:>5}" + "".join(cells)
