"""The bar of a step of the preparation: a download, or texts that are tokenised."""

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_MAX_BAR = 40  # characters


class PreparationBar:
    """One line that is redrawn from `start` until `stop`."""

    def __init__(self, terminal: RichConsole, what: str, total: float, unit: str):
        room = min(_MAX_BAR, terminal.width - len(what) - 35)  # beside the counts and the time
        self._progress = Progress(
            TextColumn("{task.description}"),
            *([BarColumn(room)] if room > 0 else []),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            console=terminal,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._progress.add_task(what, total=total)

    def update(self, done: float) -> None:
        self._progress.update(self._task, completed=done, refresh=True)

    def start(self) -> None:
        """Show it, also again after `stop`."""
        self._progress.start()

    def stop(self) -> None:
        """Remove it from the screen."""
        self._progress.stop()
