"""How those who work for long tell how far they are."""

from collections.abc import Callable

Report = Callable[[str, float, float, str], None]  # what is being done, how much of how much of it, and its unit


def unreported(what: str, done: float, total: float, unit: str) -> None:
    """The `Report` of those who show no progress."""
