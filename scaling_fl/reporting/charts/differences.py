"""What tells several jobs apart: the keys in which they differ."""

import pandas as pd

from scaling_fl.config.key_help import as_command_line, sections

# Columns of `Frames.runs` that are results or names, not keys that somebody chose.
_NOT_CHOSEN = (
    "job",
    "job_id",
    "job_name",
    "status",
    "round",
    "started",
    "seconds",
    "num_parameters",
    "author",
    "verbosity",
    "checkpoints_dir",
)


def differing_keys(runs: pd.DataFrame) -> list[str]:
    """The keys that don't have the same value in all jobs, in the order of the documentation.

    If each job has a `case`, it comes first, and keys that follow from it are left out.
    """
    keys = [name for name in runs.columns if name not in _NOT_CHOSEN and "." not in name]
    documented = [field.name for _, fields in sections() for field in fields]
    place = {name: number for number, name in enumerate(documented)}
    found = sorted(
        (key for key in keys if runs[key].map(str).nunique() > 1), key=lambda key: place.get(key, len(documented))
    )
    if "case" not in found or not runs["case"].map(is_set).all():
        return found
    by_case = runs.map(str).groupby("case")
    return ["case", *(key for key in found if key != "case" and (by_case[key].nunique() > 1).any())]


def names(runs: pd.DataFrame) -> dict[str, str]:
    """Each job's name in a legend: its values of the differing keys, but for those that aren't set.

    It is the job's own name if that would be empty, or the same as another job's.
    """
    keys = differing_keys(runs)
    found = {
        row["job"]: ", ".join(f"{key}={as_command_line(row[key])}" for key in keys if is_set(row[key]))
        for row in runs.to_dict("records")
    }
    clashes = pd.Series(found).value_counts()
    return {job: job if not name or clashes[name] > 1 else name for job, name in found.items()}


def is_set(value: object) -> bool:
    """Whether a key has a value."""
    return value is not None and value == value  # pandas has NaN for None in a column of numbers
