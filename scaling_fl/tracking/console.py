"""What the user sees: the plan, progress bars, and a table row for each round."""

import contextlib
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from scaling_fl.federated import cohort
from scaling_fl.federated.run_plan import Plan
from scaling_fl.progress import Event
from scaling_fl.tracking.round_table import RoundTable, divergence_note

_MAX_SITES_SHOWN = 16
_MAX_EARLIER_ROUNDS = 10  # shown again by a resumed job
_SECONDS_BETWEEN_LINES = 10  # without a terminal: in the preparation
_SECONDS_BETWEEN_ROUND_LINES = 60  # and in a round, so that whoever follows a log file sees that it goes on
_UNLIMITED = 10**6  # characters of a line in a pipe or a file
_MAX_BAR = 40  # characters


class Console:
    """Prints to `sys.stdout`, which Sacred captures. The bar goes to the real stderr, which it doesn't capture."""

    def __init__(self) -> None:
        self._terminal = RichConsole(file=sys.__stderr__)
        self._bar: Progress | None = None
        self._row = self._round = -1  # the last row's round, and the round in progress
        self._done: dict[Any, int] = {}
        self.listener: Callable[[str], None] = lambda text: None  # called with every line
        self._step, self._printed = "", 0.0  # the preparation's current step, and when a line was last printed
        self._table: RoundTable | None = None
        self._diverging = False  # whether the note was printed

    @property
    def width(self) -> int:
        """Characters in a line: of the terminal, or $COLUMNS; hardly limited in a pipe or a file."""
        return shutil.get_terminal_size((_UNLIMITED, 24)).columns

    def line(self, text: str = "", recorded: bool = True) -> None:
        """Print a line, above the bar if there is one, and broken between words if the terminal is narrower."""
        bar, self._bar = self._bar, None
        try:
            if bar is not None:
                bar.stop()
            print(_wrapped(text, self.width), flush=True)
        except OSError:  # the terminal is closed, or Ctrl-C also ended `tee`
            for descriptor in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        if recorded:
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
        self._table = RoundTable(plan, self.width)
        for text in self._table.head():
            self.line(text)
        self._earlier_rounds(plan, self._table)

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
                self._row = event["round"]
                if plan is not None:
                    self._round_done(plan, event)
            case "progress" if plan is not None:
                self._progress(event, plan)

    def close(self) -> None:
        """Remove the bar. Rounds may be repeated after this."""
        self._clear()
        self._row = self._round = -1

    def _earlier_rounds(self, plan: Plan, table: RoundTable) -> None:
        """The last rounds before a resume. The record has them already."""
        rounds = sorted(map(int, plan.history))
        if (left_out := len(rounds) - _MAX_EARLIER_ROUNDS) > 0:
            self.line(f"{'…':>5}  {left_out:,} earlier rounds are in the record", recorded=False)
        for round_ in rounds[-_MAX_EARLIER_ROUNDS:]:
            self.line(table.row(round_, plan.history[str(round_)]), recorded=False)

    def _round_done(self, plan: Plan, event: Event) -> None:
        self._table = self._table or RoundTable(plan, self.width)
        self.line(self._table.row(event["round"], event["metrics"]))
        note = divergence_note(plan, event["round"], event["metrics"])
        if note is not None and not self._diverging:
            self._diverging = True
            self.line(note)

    def _progress(self, event: Event, plan: Plan) -> None:
        """Show progress of a round: a bar, or without a terminal a line with the time every minute."""
        round_ = event["round"]
        if round_ <= self._row or round_ < self._round:  # it arrives after the round's row
            return
        if round_ > self._round:
            self._clear()
            self._round, self._printed = round_, time.monotonic()
        self._done[event["worker"]] = event["done"]
        what, done = f"round {round_}/{plan.config.num_rounds}", sum(self._done.values())
        total = plan.round_steps(round_) + plan.evaluation_steps * plan.config.evaluation_due(round_)
        if self._terminal.is_terminal:
            self._bar = self._bar or self._new_bar(what, total, "steps")
            self._bar.update(self._bar.task_ids[0], completed=done)
        elif time.monotonic() - self._printed > _SECONDS_BETWEEN_ROUND_LINES:
            self._printed = time.monotonic()
            here = " on this node" if plan.nodes else ""
            self.line(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {what}: {done:,} of {total:,} steps{here}")

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
        room = min(_MAX_BAR, self._terminal.width - len(what) - 35)  # beside the counts and the time
        bar = Progress(
            TextColumn("{task.description}"),
            *([BarColumn(room)] if room > 0 else []),
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


def _wrapped(text: str, width: int) -> str:
    """Lines that are longer than `width`, broken between words and indented."""
    lines = text.split("\n")
    if all(len(line) <= width for line in lines):
        return text
    wrap = textwrap.TextWrapper(
        width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False, expand_tabs=False,
        replace_whitespace=False,
    )  # fmt: skip
    return "\n".join(line if len(line) <= width else wrap.fill(line) for line in lines)


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun if count == 1 else 'processes' if noun == 'process' else noun + 's'}"
