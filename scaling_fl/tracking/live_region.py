"""The live region at the bottom of the terminal: the job, the round, and a line per site."""

from collections.abc import Iterable

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from scaling_fl.tracking.job_progress import JobProgress, duration, throughput
from scaling_fl.tracking.round_progress import DONE, TRAINING, WAITING, RoundProgress, SiteProgress

_ROWS_ABOVE = 6  # lines that are left to the table: its head and the last rounds
_MAX_BAR = 50  # characters
_MIN_BAR = 5
_GAP = 2  # blanks between label, bar and text
_LEFT = len("100/100 rounds  estimating time left")
_REFRESHES_PER_SECOND = 4.0
_STYLES = {WAITING: "dim", TRAINING: "", DONE: "green"}


class Region:
    """Renders the progress of a job in the terminal's size at that moment."""

    def __init__(self, job: JobProgress):
        self._job = job

    def __rich_console__(self, console: RichConsole, options: ConsoleOptions) -> RenderResult:
        with self._job.lock:
            yield _render(self._job, options.max_width, options.size.height)


class LiveRegion:
    """A region that is on the screen from `start` until `stop`, and redrawn in the meantime."""

    def __init__(self, terminal: RichConsole, job: JobProgress):
        self._terminal, self._region = terminal, Region(job)
        self._live: _ResizableLive | None = None

    def start(self) -> None:
        """Show it, also again after `stop`."""
        self._live = _ResizableLive(  # a stopped one would go up by the lines that it has removed already
            self._region, console=self._terminal, transient=True, redirect_stdout=False, redirect_stderr=False,
            refresh_per_second=_REFRESHES_PER_SECOND, vertical_overflow="crop",
        )  # fmt: skip
        self._live.start(refresh=True)

    def stop(self) -> None:
        """Remove it from the screen."""
        if self._live is not None:
            self._live.stop()


class _ResizableLive(Live):
    """Removes all that it has drawn, if the terminal became narrower since and broke the lines.

    Rich goes up by as many lines as it drew. Terminals other than xterm break lines that no longer fit into several.
    """

    _widths: tuple[int, ...] = ()  # of the lines on the screen

    def refresh(self) -> None:
        with self._lock:
            width, render = self.console.width, self._live_render
            if self._widths and render.last_render_height:
                rows = sum(max(1, -(-drawn // width)) for drawn in self._widths)
                render._shape = (width, rows)
            super().refresh()
            lines = self.console.render_lines(self.renderable, pad=False)
            self._widths = tuple(sum(segment.cell_length for segment in line) for line in lines)


def _render(job: JobProgress, width: int, height: int) -> RenderableType:
    """At most `height` lines, of at most `width` characters."""
    current = job.current
    lines = max(3, height - _ROWS_ABOVE)
    shown, rest = _chosen(current, lines - 2)
    labels = ["job", f"round {current.round}", *(_label(job, site) for site in shown)]
    label_width, text_width = max(map(len, labels)), max(_LEFT, *(len(text) for text in _widest(job)))
    bar_width = min(_MAX_BAR, width - label_width - text_width - 2 * _GAP)
    grid = Table.grid(padding=(0, _GAP, 0, 0))
    grid.add_column(no_wrap=True, width=label_width)
    if bar_width >= _MIN_BAR:
        grid.add_column(no_wrap=True, width=bar_width)
    grid.add_column(no_wrap=True, overflow="crop", max_width=max(1, width - label_width - _GAP))
    rows: list[tuple[float, float, Text]] = [
        (job.fraction, 1.0, _job_text(job)),
        (current.done, current.total, _round_text(job)),
        *((site.done, site.steps, _site_text(site)) for site in shown),
    ]
    for label, (done, total, text) in zip(labels, rows, strict=True):
        bar = [ProgressBar(total, done, bar_width)] if bar_width >= _MIN_BAR else []
        grid.add_row(Text(label), *bar, text)
    if not rest:
        return grid
    counts = [
        (sum(site.state == state for site in rest), state)
        for state in (DONE, TRAINING, WAITING)
        if any(site.state == state for site in rest)
    ]
    said = ", ".join(f"{count:,} {state}" for count, state in counts) if len(counts) > 1 else f"all {counts[0][1]}"
    more = " more" if shown else ""
    return Group(grid, Text(f"{len(rest):,}{more} sites: {said}", no_wrap=True, overflow="crop"))


def _chosen(current: RoundProgress, lines: int) -> tuple[list[SiteProgress], list[SiteProgress]]:
    """The sites to show in so many lines, and those to summarise in one of the lines.

    If not all fit: those in training by number, those just done, and the next ones.
    """
    sites = list(current.sites.values())
    if len(sites) <= lines:
        return sites, []
    ranks = {TRAINING: 0, DONE: 1, WAITING: 2}
    by_interest = sorted(sites, key=lambda site: (ranks[site.state], -site.order * (site.state == DONE), site.number))
    return by_interest[: lines - 1], by_interest[lines - 1 :]


def _label(job: JobProgress, site: SiteProgress) -> str:
    return "all data" if job.plan.config.baseline == "centralised" else f"site {site.number}"


def _job_text(job: JobProgress) -> Text:
    left = job.seconds_left
    said = "estimating time left" if left is None else f"{duration(left)} left"
    return Text(f"{job.rounds_done}/{job.plan.config.num_rounds} rounds  {said}")


def _round_text(job: JobProgress) -> Text:
    current, rate = job.current, job.examples_per_second
    if not job.started:
        return Text("starting")
    if current.trained and current.evaluated:
        return Text(f"{current.evaluated:,}/{current.evaluation_steps:,} batches  evaluating")
    if current.trained:
        return Text("evaluating" if not current.sites else "aggregating")
    return Text(f"{_steps(job)}" + ("" if rate is None else f"  {throughput(rate)}"))


def _steps(job: JobProgress) -> str:
    done, total = min(job.current.done, job.current.local_steps), job.current.local_steps
    return f"{done:,}/{total:,} steps" + " here" * bool(job.plan.nodes)


def _site_text(site: SiteProgress) -> Text:
    count = f"{site.done:>{len(f'{site.steps:,}')},}/{site.steps:,}"
    if site.stalled:
        return Text.assemble(f"{count}  ", ("stalled", "bold red"))
    loss = f"  loss {site.loss:.4f}" if site.loss is not None else ""
    return Text.assemble(f"{count}  ", (f"{site.state}{loss}", _STYLES[site.state]))


def _widest(job: JobProgress) -> Iterable[str]:
    """Texts as wide as those of the round can become, so that the bars keep their width while the round runs."""
    total, longest = job.current.local_steps, max((site.steps for site in job.current.sites.values()), default=0)
    yield f"{total:,}/{total:,} steps  12,345 examples/s"
    yield f"{longest:,}/{longest:,}  done  loss 1.2345"
