"""Lines about a round beside its row: progress without a terminal, single sites and phases, stalled sites."""

import re
from collections.abc import Mapping
from typing import Any

from scaling_fl.federated.run_plan import Plan
from scaling_fl.progress import Event
from scaling_fl.tracking.job_progress import JobProgress, duration, throughput
from scaling_fl.tracking.round_progress import DONE, RoundProgress
from scaling_fl.tracking.round_table import number

_SITE_METRIC = re.compile(r"site\.(\d+)\.train\.(loss|accuracy)")
_INDENT = " " * 7  # below the numbers of the table


def progress(job: JobProgress) -> str:
    """The round in progress: its steps, sites and throughput, and the time left of the job."""
    current = job.current
    said = [f"{current.done:,} of {current.total:,} steps" + " on this node" * bool(job.plan.nodes)]
    if len(current.sites) > 1:
        said.append(f"{current.count(DONE):,} of {len(current.sites):,} sites done")
    if (rate := job.examples_per_second) is not None:
        said.append(throughput(rate))
    if (left := job.seconds_left) is not None:
        said.append(f"{duration(left)} left")
    return f"round {current.round}/{job.plan.config.num_rounds}: {', '.join(said)}"


def site_losses(done: RoundProgress, results: Mapping[str, Any]) -> dict[int, float]:
    """The training loss of each site of the round, as far as it is known: metrics name up to 64 sites."""
    return {site: values["loss"] for site, values in _by_site(done, results).items()}


def details(done: RoundProgress, results: Mapping[str, Any]) -> list[str]:
    """A line for each site of the round, and one with the seconds of each phase."""
    lines = [
        f"{_INDENT}site {site}: loss {number(values['loss'], 9, 4)}, accuracy {values['accuracy']:.3f}"
        + (f", {done.sites[site].steps:,} steps" if site in done.sites else "")
        for site, values in sorted(_by_site(done, results).items())
    ]
    phases = [
        f"{name.removeprefix('seconds.')} {value:.2f} s"
        for name, value in results.items()
        if name.startswith("seconds.") and isinstance(value, int | float)
    ]
    return [*lines, f"{_INDENT}{', '.join(phases)}"] if phases else lines


def stall_note(plan: Plan, rank: int, site: int | None, event: Event) -> str:
    """A note that a worker has made no progress for long."""
    name = plan.worker_name(rank)
    at = "" if site is None or plan.one_site_per_worker else f", at site {site},"
    return (
        f"note: {name}{at} has made no progress for {duration(event['seconds'])}; the longest pause before was "
        f"{duration(event['pause'])}, and it counts as hung after stall_timeout={plan.config.stall_timeout:g} s"
    )


def _by_site(done: RoundProgress, results: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    sites: dict[int, dict[str, float]] = {
        site.number: {"loss": site.loss, "accuracy": site.accuracy}
        for site in done.sites.values()
        if site.loss is not None and site.accuracy is not None
    }
    for name, value in results.items():
        if found := _SITE_METRIC.fullmatch(name):
            sites.setdefault(int(found[1]), {})[found[2]] = float(value)  # "nan" and "inf" are text
    return sites
