"""A sweep: many jobs that differ in some keys. Which keys matter, and the mean and spread of each group.

A group is all jobs that differ in nothing but their seeds. It is one line or point: a mean over seeds.
"""

import math
import numbers
import re
from collections.abc import Collection
from typing import Any, NamedTuple

import pandas as pd

from scaling_fl.config.key_help import as_command_line
from scaling_fl.config.partition_keys import PARTITION_OF_KEY, chosen_partition
from scaling_fl.reporting import outcomes
from scaling_fl.reporting.charts import differences
from scaling_fl.reporting.frames import Frames

REPLICATES = ("seed", "data_seed")
# Where a job runs, what it measures and what it leaves behind. The result doesn't depend on them.
_CIRCUMSTANCES = (
    "eval_every", "log_gradient_norms", "site_ids", "devices", "processes", "threads_per_site", "max_restarts", "stall_timeout", "checkpoint_every",
    "keep_checkpoints", "keep_best", "export", "tensorboard_dir", "report", "checkpoint", "csv_path", "all",
)  # fmt: skip
_TITLES = {"num_sites": "number of sites", "task_name": "task", "num_rounds": "rounds"}
_UNSET = "not set"


class Sweep(NamedTuple):
    """Jobs that form at least two groups."""

    jobs: pd.DataFrame  # job, its value of each key, and its group in words
    keys: dict[str, list[Any]]  # that differ -> their values in order: numbers, or words if one of them is no number

    def is_numeric(self, key: str) -> bool:
        """Whether all values of the key are numbers."""
        return all(_is_number(value) for value in self.keys[key])

    def by_number_of_values(self) -> list[str]:
        """The keys, from the one with the most values; those with as many in the order of the documentation."""
        return sorted(self.keys, key=lambda key: -len(self.keys[key]))


def find(frames: Frames) -> Sweep | None:
    """The sweep that the jobs form, or `None` if they differ in nothing but seeds and circumstances.

    Of keys that vary in lock-step, the first in the documentation stands for all.
    """
    if frames.runs.empty:
        return None
    runs = _resolved(frames.runs)
    keys = [key for key in differences.differing_keys(runs) if key not in (*REPLICATES, *_CIRCUMSTANCES)]
    columns, values = {}, {}
    for key in keys:
        columns[key], values[key] = _column(runs[key])
    table = pd.DataFrame(columns)
    keys = _without_lock_step(table, keys)
    if not keys:
        return None
    found = [", ".join(f"{key}={as_text(row[key])}" for key in keys) for row in table.to_dict("records")]
    jobs = table[keys].assign(job=list(runs["job"]), group=found)
    return Sweep(jobs, {key: values[key] for key in keys})


def as_text(value: Any) -> str:
    """A value as `panels.LABEL` writes it."""
    return re.sub(r"e\+?(-?)0*", r"e\1", f"{value:.6g}") if _is_number(value) else str(value)


def title(key: str) -> str:
    """A key as the title of an axis."""
    return _TITLES.get(key, key.replace("_", " "))


def final_results(frames: Frames, sweep: Sweep) -> pd.DataFrame:
    """`sweep.jobs` with the outcome after the last round as `value`. Jobs that haven't completed are left out."""
    metric = outcomes.compared(frames).metric
    if metric not in frames.runs:
        return sweep.jobs.assign(value=math.nan).iloc[:0]
    done = frames.runs[frames.runs["status"] == "COMPLETED"]
    values = done[["job", metric]].rename(columns={metric: "value"}).dropna()
    return sweep.jobs.merge(values, on="job")


def over_seeds(values: pd.DataFrame, sweep: Sweep, *by: str) -> pd.DataFrame:
    """Mean of `value`, and `low` and `high`, over the jobs of each group, with their number as `seeds`.

    low and high: mean ± sample standard deviation (n - 1) from three jobs on, minimum and maximum of two.
    """
    of_group = values.groupby(["group", *sweep.keys, *by], sort=False)["value"]
    found = of_group.agg(["mean", "min", "max", "std", "size"]).reset_index().rename(columns={"size": "seeds"})
    few = found["seeds"] < 3
    found["low"] = found["min"].where(few, found["mean"] - found["std"])
    found["high"] = found["max"].where(few, found["mean"] + found["std"])
    return found.drop(columns=["min", "max", "std"])


def are_powers_of_two(values: Collection[Any]) -> bool:
    """Whether an axis should double from tick to tick."""
    return all(value > 0 and math.frexp(value)[0] == 0.5 for value in values)


def is_log(values: Collection[Any]) -> bool:
    """Whether numbers belong on a logarithmic scale: powers of two, or positive and spanning more than a factor of 20."""
    return min(values) > 0 and (are_powers_of_two(values) or max(values) > 20 * min(values))


def _resolved(runs: pd.DataFrame) -> pd.DataFrame:
    """With the number of sites and the partition of records that lack them; a partition includes its own keys."""
    rows = runs.to_dict("records")
    runs = runs.copy()
    if {"num_sites", "site_ids"} <= set(runs):
        runs["num_sites"] = [
            row["num_sites"] if differences.is_set(row["num_sites"]) else len(row["site_ids"]) for row in rows
        ]
    if "partition" in runs:
        runs["partition"] = [
            chosen_partition({key: v for key, v in row.items() if differences.is_set(v)}) for row in rows
        ]
    if "partition" in runs and runs["partition"].nunique() > 1:
        own = [key for key in differences.differing_keys(runs) if key in PARTITION_OF_KEY]
        runs["partition"] = [
            " ".join(
                [
                    row["partition"],
                    *(f"{key}={as_text(row[key])}" for key in own if differences.is_set(row[key]) and row[key]),
                ]
            )
            for row in runs.to_dict("records")
        ]
        runs = runs.drop(columns=[*own, "iid_split"], errors="ignore")
    return runs


def _column(values: pd.Series) -> tuple[list[Any], list[Any]]:
    """A key's values, and the distinct ones in order: numbers, or words (numbers first, `not set` last)."""
    found = [value.item() if hasattr(value, "item") else value for value in values]
    if all(_is_number(value) for value in found):
        return found, sorted(set(found))
    words = {as_command_line(value): _word(value, found) for value in found}
    order = sorted(
        {as_command_line(value): value for value in found}.items(),
        key=lambda of: (
            not differences.is_set(of[1]), not _is_number(of[1]), of[1] if _is_number(of[1]) else 0, words[of[0]]
        ),
    )  # fmt: skip
    return [words[as_command_line(value)] for value in found], list(dict.fromkeys(words[name] for name, _ in order))


def _word(value: Any, others: Collection[Any]) -> str:
    """A value in words; of paths and names on the hub the last part, if that tells them apart."""
    if not differences.is_set(value):
        return _UNSET
    text = as_text(value) if _is_number(value) else as_command_line(value)
    names = {str(other).rstrip("/").rsplit("/", 1)[-1] for other in others}
    return text.rstrip("/").rsplit("/", 1)[-1] if len(names) == len({str(other) for other in others}) else text


def _without_lock_step(table: pd.DataFrame, keys: list[str]) -> list[str]:
    """The keys without those that follow from another key, or from the number of sites and the participation."""
    kept, num_groups = list(keys), len(table.drop_duplicates())
    causes = [key for key in ("num_sites", "participation") if key in kept]
    if "sites_per_round" in kept and causes and (table.groupby(causes)["sites_per_round"].nunique() == 1).all():
        kept.remove("sites_per_round")
    for key in reversed(keys):
        if key in kept and any(_determines(table, other, key, num_groups) for other in kept if other != key):
            kept.remove(key)
    return kept


def _determines(table: pd.DataFrame, cause: str, key: str, num_groups: int) -> bool:
    """Whether `key` follows from `cause`, and not by chance: any key follows from numbers that are drawn at random."""
    pairs = table[[cause, key]].drop_duplicates().sort_values(cause)
    if pairs[cause].nunique() < len(pairs):
        return False
    if not pd.api.types.is_numeric_dtype(pairs[cause]) or len(pairs) < num_groups:
        return True
    if not pd.api.types.is_numeric_dtype(pairs[key]):
        return bool(pairs[key].is_unique)
    return bool(pairs[key].is_unique and (pairs[key].is_monotonic_increasing or pairs[key].is_monotonic_decreasing))


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and differences.is_set(value)
