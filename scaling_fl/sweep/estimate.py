"""What a sweep will take: time by its complete cells, memory by measurement or by the size of the weights."""

from collections.abc import Iterator, Mapping, Sequence

from scaling_fl.reporting.facts import duration
from scaling_fl.sweep.cells import Cell, State
from scaling_fl.sweep.slots import Slots, memory_of
from scaling_fl.tracking.record import Record


def seconds_left(all_cells: Sequence[Cell], states: Mapping[str, State]) -> dict[str, float | None]:
    """Seconds that each cell still takes: its rounds, at the mean pace of begun cells of like settings; None if unknown."""
    paces: dict[tuple[object, ...], list[float]] = {}
    for cell in all_cells:
        state = states[cell.name]
        if state.record is not None and state.round > 0:
            for key in _likenesses(cell):
                paces.setdefault(key, []).append(_seconds(state.record) / state.round)
    found: dict[str, float | None] = {}
    for cell in all_cells:
        left = cell.config.num_rounds - states[cell.name].round
        known = next((paces[key] for key in _likenesses(cell) if key in paces), None)
        found[cell.name] = 0.0 if left <= 0 else None if known is None else left * sum(known) / len(known)
    return found


def lines(all_cells: Sequence[Cell], states: Mapping[str, State], places: Slots) -> Iterator[str]:
    """A line for each cell, and the sum."""
    left = seconds_left(all_cells, states)
    width = max(len(cell.name) for cell in all_cells)
    yield f"{'job':<{width}}  {'state':<8}  {'round':>9}  {'time left':>9}  {'memory':>7}"
    for cell in all_cells:
        state, seconds = states[cell.name], left[cell.name]
        time_left = "?" if seconds is None else duration(seconds) if seconds else ""
        memory = f"{memory_of(cell, places.measured) / 1e9:.1f} GB"
        round_ = f"{state.round}/{cell.config.num_rounds}"
        yield f"{cell.name:<{width}}  {state.status:<8}  {round_:>9}  {time_left:>9}  {memory:>7}"
    unknown = sum(seconds is None for seconds in left.values())
    total = sum(seconds for seconds in left.values() if seconds)
    todo = [cell for cell in all_cells if left[cell.name] != 0.0]
    at_once = _at_once(todo, places) if todo else 1
    known = (
        f"{duration(total / at_once)}{' and more' if unknown else ''}" if total else "unknown" if unknown else "none"
    )
    gpus = f", {len(places.gpus)} GPUs" if places.gpus else ""
    yield (
        f"{len(all_cells)} jobs, {len(todo)} left; time left {known}; {at_once} at once "
        f"({places.cores} cores{gpus}, {places.memory / 1e9:.0f} GB free)"
    )
    if (
        at_once == 1
        and len(todo) > 1
        and not places.gpus
        and any(cell.config.threads_per_site is None for cell in todo)
    ):
        yield "note: without threads_per_site a job uses all cores; threads_per_site=1 may let several jobs run at once"


def _at_once(todo: Sequence[Cell], places: Slots) -> int:
    number = 0
    for cell in todo:
        if places.take(cell) is None:
            break
        number += 1
    for cell in todo[:number]:
        places.release(cell)
    return number


def _likenesses(cell: Cell) -> list[tuple[object, ...]]:
    """What the pace of a round depends on, from the closest likeness to the loosest."""
    config = cell.config
    model = (config.model, config.task_name, config.max_seq_len, cell.num_processes)
    cost = (config.num_local_epochs, config.num_local_steps, config.sites_per_round, config.batch_size)
    return [(*model, *cost, config.num_sites), (*model, *cost), model]


def _seconds(record: Record) -> float:
    phases = ("seconds.train", "seconds.aggregate", "seconds.evaluate")
    return sum(value for name in phases for value, _ in record.metrics.get(name, {}).values())
