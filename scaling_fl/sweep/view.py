"""The table of a sweep's cells while it runs: live on a terminal, a time-stamped line for each change elsewhere."""

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from scaling_fl.reporting import outcomes
from scaling_fl.sweep import cells
from scaling_fl.sweep.cells import Cell

_ORDER = ("running", "failed", "elsewhere", "complete", "waiting")
_STYLES = {"running": "bold", "failed": "red", "elsewhere": "yellow", "complete": "green", "waiting": "dim"}


class CellTable:
    """Status, round, result and time of each cell."""

    def __init__(
        self,
        sweep: str,
        all_cells: Sequence[Cell],
        states: Mapping[str, cells.State] = MappingProxyType({}),
        console: Console | None = None,
    ):
        """`states`: how far the cells have come before the sweep runs."""
        self.console = console or Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._sweep, self._cells = sweep, list(all_cells)
        done = {name for name, state in states.items() if state.status == "complete"}
        self._status = {cell.name: "complete" if cell.name in done else "waiting" for cell in all_cells}
        self._detail: dict[str, str] = {}
        self._state = dict(states)
        self._began: dict[str, float] = {}
        self._live: Live | None = None

    def __enter__(self) -> "CellTable":
        if self.console.is_terminal:
            self._live = Live(get_renderable=self.render, console=self.console, refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def change(self, cell: Cell, status: str, detail: str = "") -> None:
        """Show a new status; without a terminal, print it."""
        self._status[cell.name], self._detail[cell.name] = status, detail
        if status == "running":
            self._began[cell.name] = time.monotonic()
        if self._live is None:
            told = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {cell.name}: {status}"
            result = self._result(cell.name) if status == "complete" else detail
            self.console.print(f"{told}{f' ({result})' if result else ''}", markup=False)

    def progress(self, cell: Cell, state: cells.State) -> None:
        """Show how far a cell has come."""
        self._state[cell.name] = state

    def counts(self) -> str:
        """How many cells have which status."""
        found = Counter(self._status.values())
        return ", ".join(f"{found[status]} {status}" for status in _ORDER if found[status])

    def render(self) -> RenderableType:
        """The cells that matter now, as many as the terminal is high, and a summary of all."""
        room = max(3, self.console.height - 6)
        by_status = sorted(self._cells, key=lambda cell: _ORDER.index(self._status[cell.name]))
        shown = by_status[:room]
        table = Table(box=None, pad_edge=False, header_style="bold")
        measured = next((result for cell in self._cells if (result := self._outcome(cell.name))), None)
        heading = measured[0].heading if measured else "accuracy"
        for title in ("cell", "status", "round", heading, "time"):
            table.add_column(title, justify="left" if title in ("cell", "status") else "right", no_wrap=True)
        for cell in shown:
            status, state = self._status[cell.name], self._state.get(cell.name)
            round_ = f"{state.round}/{cell.config.num_rounds}" if state is not None else ""
            began = self._began.get(cell.name)
            seconds = f"{time.monotonic() - began:.0f} s" if status == "running" and began is not None else ""
            label = Text(cell.name.removeprefix(f"{self._sweep}."), overflow="ellipsis")
            table.add_row(label, Text(status, _STYLES[status]), round_, self._value(cell.name), seconds)
        rest = f"… and {len(by_status) - len(shown)} more" if len(by_status) > len(shown) else ""
        return Group(table, Text(rest, "dim"), Text(f"sweep {self._sweep}: {self.counts()} of {len(self._cells)}"))

    def _outcome(self, name: str) -> tuple[outcomes.Outcome, str] | None:
        """What the cell's task measures, and its value after the last round that was evaluated."""
        state = self._state.get(name)
        metrics = state.record.metrics if state is not None and state.record is not None else {}
        outcome = outcomes.of_job(metrics)
        points = metrics.get(outcome.metric)
        return (outcome, f"{points[max(points)][0]:.4f}") if points else None

    def _value(self, name: str) -> str:
        found = self._outcome(name)
        return found[1] if found else ""

    def _result(self, name: str) -> str:
        found = self._outcome(name)
        return f"{found[0].title} {found[1]}" if found else ""
