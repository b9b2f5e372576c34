"""What the user sees: the plan, progress, and a table row for each round."""

import contextlib
import io
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from rich.console import Console as RichConsole

from scaling_fl.federated.run_plan import Plan
from scaling_fl.progress import Event
from scaling_fl.text import wrapped
from scaling_fl.tracking import round_details
from scaling_fl.tracking.job_progress import JobProgress
from scaling_fl.tracking.live_region import LiveRegion
from scaling_fl.tracking.loss_watch import LossWatch
from scaling_fl.tracking.plan_lines import plan_lines
from scaling_fl.tracking.preparation_bar import PreparationBar
from scaling_fl.tracking.round_table import RoundTable, divergence_note

_MAX_EARLIER_ROUNDS = 10  # shown again by a resumed job
_SECONDS_BETWEEN_LINES = 10  # without a terminal: in the preparation
_SECONDS_BETWEEN_ROUND_LINES = 60  # and in a round, so that whoever follows a log file sees that it goes on
_UNLIMITED = 10**6  # characters of a line in a pipe or a file


class Console:
    """Prints to `sys.stdout`, which Sacred captures. What is redrawn goes to the real stderr, which it doesn't capture."""

    def __init__(self) -> None:
        self._terminal = RichConsole(file=sys.__stderr__, force_terminal=_is_screen(sys.__stderr__, sys.__stdout__))
        self._live: LiveRegion | PreparationBar | None = None  # what is redrawn at the bottom of the terminal
        self._job: JobProgress | None = None
        self.listener: Callable[[str], None] = lambda text: None  # called with every line
        self.verbosity = "normal"  # the key
        self._step, self._printed = "", 0.0  # the preparation's current step, and when a line was last printed
        self._table: RoundTable | None = None
        self._losses: LossWatch | None = None
        self._diverging = False  # whether the note was printed

    @property
    def width(self) -> int:
        """Characters in a line: of the terminal, or $COLUMNS; hardly limited in a pipe or a file."""
        return shutil.get_terminal_size((_UNLIMITED, 24)).columns

    def line(self, text: str = "", recorded: bool = True, quiet: bool = True) -> None:
        """Print a line, above what is redrawn, and broken between words if the terminal is narrower.

        `quiet`: whether it is printed with verbosity=quiet, too; records have it in any case.
        """
        live, self._live = self._live, None
        with self._unless_closed():
            if quiet or self.verbosity != "quiet":
                if live is not None:
                    live.stop()
                print(wrapped(text, self.width), flush=True)
        if recorded:
            self.listener(text)
        if live is not None:
            self._show(live)

    def plan(self, plan: Plan) -> None:
        """Print the plan and the head of the table."""
        for text in plan_lines(plan):
            self.line(text, quiet=False)
        if plan.node > 0:
            return
        self.line(quiet=False)
        self._table = RoundTable(plan, self.width)
        for text in self._table.head():
            self.line(text, quiet=False)
        self._earlier_rounds(plan, self._table)
        self._follow(plan)

    def event(self, event: Event, plan: Plan | None = None) -> None:
        """Show an event of the preparation or of a worker."""
        match event["event"]:
            case "said":
                if plan is None:
                    self._clear()
                self.line(event["text"], quiet=plan is not None or event["text"].startswith("note: "))
            case "working":
                self._working(event["what"], event["done"], event["total"], event["unit"])
            case "output":
                self.line(f"{event['source']} | {event['text']}")
            case "round" if plan is not None:
                self._round_done(plan, event)
            case "progress" if plan is not None:
                self._progress(event, plan)
            case "stalled" if plan is not None:
                rank = plan.ranks_here[event["child"]]
                site = self._follow(plan).stalled(rank)
                self.line(round_details.stall_note(plan, rank, site, event))
            case "checkpoint" if self.verbosity == "verbose":
                self.line(f"       checkpoint of round {event['round']}: {event['seconds']:.2f} s")

    def close(self) -> None:
        """Remove what is redrawn. Rounds may be repeated after this."""
        self._clear()
        self._job = None

    def _follow(self, plan: Plan) -> JobProgress:
        """The job's progress, which is on the screen from now on."""
        if self._job is None:
            self._clear()
            self._job, self._printed = JobProgress(plan, time.monotonic), time.monotonic()
            if self._terminal.is_interactive and self.verbosity != "quiet":
                self._show(LiveRegion(self._terminal, self._job))
        return self._job

    def _earlier_rounds(self, plan: Plan, table: RoundTable) -> None:
        """The last rounds before a resume. The record has them already."""
        rounds = sorted(map(int, plan.history))
        if (left_out := len(rounds) - _MAX_EARLIER_ROUNDS) > 0:
            self.line(f"{'…':>5}  {left_out:,} earlier rounds are in the record", recorded=False, quiet=False)
        for round_ in rounds[-_MAX_EARLIER_ROUNDS:]:
            self.line(table.row(round_, plan.history[str(round_)]), recorded=False, quiet=False)

    def _round_done(self, plan: Plan, event: Event) -> None:
        """Print the round's row and the notes on it; remove what is redrawn after the last."""
        round_, results = event["round"], event["metrics"]
        self._table = self._table or RoundTable(plan, self.width)
        self._losses = self._losses or LossWatch(plan.num_outputs)
        done = self._follow(plan).round_done(round_, results)
        self._printed = time.monotonic()
        if self._table.fit(self.width):  # the terminal has become narrower
            for text in self._table.head():
                self.line(text, recorded=False, quiet=False)
        last = round_ >= plan.config.num_rounds
        if last:
            self._clear()
            if self.verbosity == "quiet":
                for text in self._table.head():
                    self.line(text, recorded=False)
        self.line(self._table.row(round_, results), quiet=last)
        losses = round_details.site_losses(done, results)
        if self.verbosity == "verbose" and (details := round_details.details(done, results)):
            self.line("\n".join(details))
        note = divergence_note(plan, round_, results)
        if note is not None and not self._diverging:
            self._diverging = True
            self.line(note)
        if (note := self._losses.note(round_, losses)) is not None:
            self.line(note)

    def _progress(self, event: Event, plan: Plan) -> None:
        """Show progress of a round: on the screen, or without a terminal a line with the time every minute."""
        job = self._follow(plan)
        if not job.progress(event) or self._terminal.is_interactive:
            return
        if time.monotonic() - self._printed > _SECONDS_BETWEEN_ROUND_LINES:
            self._printed = time.monotonic()
            self.line(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {round_details.progress(job)}", quiet=False)

    def _working(self, what: str, done: float, total: float, unit: str) -> None:
        """Show progress of the preparation: a bar, or without a terminal a line every few seconds."""
        if what != self._step:
            self._clear()
            self._step, self._printed = what, time.monotonic()
        if not self._terminal.is_interactive:
            if time.monotonic() - self._printed > _SECONDS_BETWEEN_LINES:
                self._printed = time.monotonic()
                self.line(f"{what}: {done:,.0f} of {total:,.0f} {unit}", quiet=False)
        elif done >= total or self.verbosity == "quiet":
            self._clear()
        else:
            if not isinstance(self._live, PreparationBar):
                self._show(PreparationBar(self._terminal, what, total, unit))
            if isinstance(self._live, PreparationBar):
                with self._unless_closed():
                    self._live.update(done)

    def _show(self, live: LiveRegion | PreparationBar) -> None:
        """Redraw it at the bottom of the terminal, unless that is closed."""
        if self._terminal.is_interactive:
            with self._unless_closed():
                live.start()
                self._live = live

    def _clear(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            with self._unless_closed():
                live.stop()

    @contextlib.contextmanager
    def _unless_closed(self) -> Iterator[None]:
        """If the terminal is closed, or Ctrl-C also ended `tee`, print and redraw nothing from now on."""
        try:
            yield
        except OSError:
            for descriptor in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
            self._terminal, self._live = RichConsole(file=io.StringIO(), force_terminal=False), None


def _is_screen(stderr: TextIO | None, stdout: TextIO | None) -> bool:
    """Whether lines can be redrawn: in a terminal, and not if the rows get there later, through a pipe to `tee`."""
    try:
        return bool(stderr and stderr.isatty()) and not (stdout and stat.S_ISFIFO(os.fstat(stdout.fileno()).st_mode))
    except (OSError, ValueError):  # closed, or no file
        return False
