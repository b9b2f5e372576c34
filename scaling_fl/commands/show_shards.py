"""The `show_shards` command: a table and a terminal picture of the shards, sites × labels, without training."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from scaling_fl.commands import csv_file
from scaling_fl.config.partition_keys import PARTITION_OF_KEY, chosen_partition
from scaling_fl.config.schema import Config
from scaling_fl.data import site_tests
from scaling_fl.data.examples import Split, Task
from scaling_fl.data.shards import Sharding, make_shards
from scaling_fl.data.task_loader import load_task, reads_over_network
from scaling_fl.federated import attackers
from scaling_fl.federated.metrics import label_entropy
from scaling_fl.models import loading
from scaling_fl.progress import Send, waiting
from scaling_fl.text import blocks, num_columns, padded, short_names

_MAX_SITES = 16  # in the table; if there are more, only the first and the last
_FIRST, _LAST = 6, 3
_MAX_COLUMNS = 8  # labels in the table
_MAX_ROWS = 30  # labels in the picture
_MAX_WIDTH = 64  # characters of the picture
_LABEL_WIDTH = 16
_WIDTH = 120  # characters of a line, unless the terminal is narrower
_SHADES = "·░▒▓█"  # none, up to a quarter, half, three quarters, all
_HEIGHTS = "▁▂▃▄▅▆▇█"


def show(send: Send, config: Config, width: int) -> None:
    """Send table and picture line by line, for `width` characters. Raises `UserError` on bad input, like a run."""
    loading.silence_library()

    def report(what: str, done: float, total: float, unit: str) -> None:
        send({"event": "working", "what": what, "done": done, "total": total, "unit": unit})

    csv_file.check_new(config.csv_path)
    with waiting(send, reads_over_network(config)):
        task = load_task(config, report)
    notes = list(task.notes)
    sharding = make_shards(config, task.train, notes)
    shards, tests = site_tests.make(config, sharding.shards, task.train.labels, task.test.labels, notes)
    sharding = sharding._replace(shards=shards)
    lines = describe(config, task.train, task.label_names, sharding, width, tests)
    for line in [f"note: {note}" for note in notes] + lines:
        send({"event": "said", "text": line})
    if config.csv_path is not None:
        csv_file.write(config.csv_path, *_columns(config, task, sharding, tests))
        send({"event": "said", "text": f"shards  {config.csv_path}"})


def describe(
    config: Config,
    split: Split,
    label_names: Sequence[str],
    sharding: Sharding,
    width: int = _WIDTH,
    tests: Sequence[npt.NDArray[np.int64]] = (),
) -> list[str]:
    """Return table and picture of the shards, as lines. Their rows have at most `width` (≥ 60) characters.

    `tests`: each site's own test rows, if sites have them.
    """
    keys = config.to_mapping()
    chosen = [f"{key}={keys[key]}" for key in PARTITION_OF_KEY if keys[key] not in (None, False)]
    held_back = f"; {len(sharding.held_back):,} more are held back" if len(sharding.held_back) else ""
    return [
        f"{' '.join([f'partition={chosen_partition(keys)}', *chosen])}: {len(sharding.shards):,} sites, "
        f"{len(sharding.trained):,} training rows{held_back}",
        "",
        *_table(split, label_names, sharding, width, config.all, _facts(config, sharding.shards, tests)),
        "",
        *_picture(split, label_names, sharding.shards, width, config.all),
    ]


def _facts(
    config: Config, shards: Sequence[npt.NDArray[np.int64]], tests: Sequence[npt.NDArray[np.int64]]
) -> dict[str, list[str]]:
    """Columns that only some configurations have: own test rows of each site, and what the site attacks with."""
    found: dict[str, list[str]] = {}
    if tests:
        found["own test"] = [f"{len(rows):,}" for rows in tests]
    if bad := attackers.drawn(config, len(shards)):
        found["attacks"] = ["" if site not in bad else str(config.attack) for site in range(len(shards))]
    return found


def _columns(
    config: Config, task: Task, sharding: Sharding, tests: Sequence[npt.NDArray[np.int64]]
) -> tuple[list[str], Iterator[list[object]]]:
    """The whole table for a CSV file: header and rows."""
    split, facts = task.train, _facts(config, sharding.shards, tests)
    named = ["name"] if split.sites is not None else []
    rows = (
        [
            site,
            *([] if split.sites is None else [split.sites[shard[0]]]),
            len(shard),
            f"{label_entropy(split.labels[shard]):.6f}",
            *(values[site].replace(",", "") for values in facts.values()),
            *np.bincount(split.labels[shard], minlength=len(task.label_names)).tolist(),
        ]
        for site, shard in enumerate(sharding.shards)
    )
    return ["site", *named, "examples", "entropy", *facts, *task.label_names], rows


def _table(
    split: Split,
    label_names: Sequence[str],
    sharding: Sharding,
    max_width: int,
    every: bool,
    facts: dict[str, list[str]],
) -> list[str]:
    shards, label_width = sharding.shards, min(_LABEL_WIDTH, (max_width - 30) // 2)
    columns = short_names(label_names[: None if every else _MAX_COLUMNS], label_width)
    names = list(map(str, range(len(shards))))
    if split.sites is not None:  # partition=column: the value that the site's rows share
        names = short_names([split.sites[shard[0]] for shard in shards], label_width)
    width = max(4, *map(num_columns, names))
    few = every or len(shards) <= _MAX_SITES
    shown = range(len(shards)) if few else [*range(_FIRST), *range(len(shards) - _LAST, len(shards))]
    counts = {site: np.bincount(split.labels[shards[site]], minlength=len(label_names)) for site in shown}
    entropies = [label_entropy(split.labels[shard]) for shard in shards]
    cell = max(8, len(f"{max(map(np.max, counts.values())):,}"))
    leads = ["examples", "entropy", *facts]
    of_facts = (max(map(len, (head, *values))) for head, values in facts.items())
    widths = [9, 7, *of_facts, *(max(cell, num_columns(name)) for name in columns)]
    parts = list(blocks([2 + width for width in widths], max_width - width))
    if not every:
        del columns[max(0, parts[0].stop - len(leads)) :], parts[1:]

    lines = []
    for part in parts:
        heads = zip([*leads, *columns][part], widths[part], strict=False)
        lines += [""] * (part.start > 0)
        lines.append(f"{'site':>{width}}" + "".join(f"  {padded(head, room, right=True)}" for head, room in heads))
        for site in shown:
            if not few and site == len(shards) - _LAST:
                lines.append(f"{'…':>{width}}  {len(shards) - _FIRST - _LAST:,} more sites; all=True lists them")
            cells = [f"{len(shards[site]):,}", f"{entropies[site]:.3f}", *(values[site] for values in facts.values())]
            cells += [f"{count:,}" for count in counts[site]]
            row = (f"  {text:>{room}}" for text, room in zip(cells[part], widths[part], strict=False))
            lines.append(padded(names[site], width, right=True) + "".join(row))
    if len(label_names) > len(columns):
        lines.append(f"{'':>{width}}  … and {len(label_names) - len(columns):,} more labels")
    smallest, median, largest = np.quantile([len(shard) for shard in shards], (0, 0.5, 1), method="inverted_cdf")
    return [
        *lines,
        f"examples: smallest {smallest:,}, median {median:,}, largest {largest:,}; label entropy in bits: mean over the "
        f"sites {np.mean(entropies):.3f}, all rows {label_entropy(split.labels[sharding.trained]):.3f}",
    ]


def _picture(
    split: Split, label_names: Sequence[str], shards: Sequence[npt.NDArray[np.int64]], max_width: int, every: bool
) -> list[str]:
    """Sites from left to right: a bar for the size, and below it each label's share of the site's examples.

    If there are too many sites for a line, some are left out, or, if `every` site is shown, more lines follow.
    """
    num_rows = len(label_names) if every else _MAX_ROWS
    names = short_names(label_names[:num_rows], _LABEL_WIDTH)
    width = max(map(num_columns, ("examples", *names)))
    room = min(_MAX_WIDTH, max_width - width - 2)
    sizes = np.array([len(shard) for shard in shards])
    if every:
        parts = np.split(np.arange(len(shards)), range(room, len(shards), room))
    else:
        parts = [np.unique(np.linspace(0, len(shards) - 1, min(len(shards), room)).astype(np.int64))]
    across = min(6, room // len(parts[0]))  # characters per site

    def row(name: str, characters: str, levels: npt.NDArray[np.int64]) -> str:
        return f"{padded(name, width, right=True)}  {''.join(characters[level] * across for level in levels)}"

    shown = sum(map(len, parts))
    which = f"all {shown}" if shown == len(shards) else f"{shown} of {len(shards):,}"
    wide = f", each {across} characters wide" if across > 1 else ""
    lines = [
        f"{'':>{width}}  {which} sites from left to right{wide}",
        f"{'examples':>{width}}  the higher, the more examples: █ is as large as the largest site ({sizes.max():,})",
        f"{'a label':>{width}}  its share of the site's examples: · none  ░ up to 25 %  ▒ up to 50 %  ▓ up to 75 %  █ more",
    ]
    for sites in parts:
        counts = np.array([np.bincount(split.labels[shards[site]], minlength=len(label_names)) for site in sites])
        heights = np.ceil(len(_HEIGHTS) * sizes[sites] / sizes.max()).astype(int) - 1
        shades = np.ceil((len(_SHADES) - 1) * counts / counts.sum(axis=1, keepdims=True)).astype(int)
        lines += ["", f"{'':>{width}}  sites {sites[0]} to {sites[-1]}"] if len(parts) > 1 else [""]
        lines.append(row("examples", _HEIGHTS, heights))
        lines += [row(name, _SHADES, shades[:, label]) for label, name in enumerate(names)]
    if len(label_names) > num_rows:
        lines.append(f"{'':>{width}}  … and {len(label_names) - num_rows:,} more labels")
    return lines
