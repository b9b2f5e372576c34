"""A terminal that shows what was written to it, as far as the console uses it."""

import io
import re
from typing import Any

from rich.console import Console as RichConsole

from scaling_fl.tracking.console import Console
from scaling_fl.tracking.live_region import LiveRegion

_TOKEN = re.compile(r"\x1b\[(\??[\d;]*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n]+)")


class Screen(io.StringIO):
    """The stream of a `RichConsole`; `lines` is what stands on the screen. Colours are left out."""

    def __init__(self, width: int, height: int):
        super().__init__()
        self.terminal = RichConsole(
            file=self, force_terminal=True, color_system=None, width=width, height=height, legacy_windows=False,
            _environ={"TERM": "xterm"},
        )  # fmt: skip

    @property
    def lines(self) -> list[str]:
        rows, row, column = [""], 0, 0
        for arguments, command, back, down, text in _TOKEN.findall(self.getvalue()):
            if text:
                rows[row] = rows[row][:column].ljust(column) + text + rows[row][column + len(text) :]
                column += len(text)
            elif back:
                column = 0
            elif down:
                row, column = row + 1, 0
                rows += [""] * (row == len(rows))
            elif command == "A":
                row = max(0, row - int(arguments or 1))
            elif command == "K":
                rows[row] = ""
        return [line.rstrip() for line in rows]

    @property
    def shown(self) -> str:
        return "\n".join(self.lines).strip("\n")

    @property
    def cursor_hidden(self) -> bool:
        return self.getvalue().rfind("\x1b[?25l") > self.getvalue().rfind("\x1b[?25h")


def on_screen(width: int) -> tuple[Console, Screen]:
    """A console on a terminal of its own."""
    console, screen = Console(), Screen(width, 24)
    console._terminal = screen.terminal
    return console, screen


def redraw(console: Console) -> None:
    """What a thread does four times a second."""
    assert isinstance(console._live, LiveRegion)
    assert console._live._live is not None
    console._live._live.refresh()


def working(what: str, done: float, total: float = 30) -> dict[str, Any]:
    return {"event": "working", "what": what, "done": done, "total": total, "unit": "MB"}
