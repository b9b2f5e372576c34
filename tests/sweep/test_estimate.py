"""The time that a sweep still takes, and how many of its jobs run at once."""

from scaling_fl.sweep import cells, estimate, slots
from scaling_fl.sweep.cells import State
from scaling_fl.tracking.record import Record

BASE = {"model": "tiny", "site_ids": [-1], "threads_per_site": 1, "num_rounds": 4}


def begun(*seconds: float, status: str = "started") -> State:
    """A cell whose rounds, but for round 0, have taken so many seconds each."""
    record = Record()
    for share, phase in ((0.5, "train"), (0.25, "aggregate"), (0.25, "evaluate"), (9.0, "idle"), (9.0, "checkpoint")):
        record.metrics[f"seconds.{phase}"] = {
            round_: (share * value, 0.0) for round_, value in enumerate(seconds, start=1)
        }
    return State(status, len(seconds), record)


def test_rounds_take_as_long_as_those_of_the_cells_that_are_most_alike() -> None:
    rows = [
        *({"batch_size": size, "num_sites": 1, "seed": seed} for size in (8, 16) for seed in (1, 2)),
        {"batch_size": 8, "num_sites": 3},
        {"batch_size": 32, "num_sites": 1},
        {"max_seq_len": 8, "num_sites": 1},
        {"batch_size": 8, "num_sites": 1, "seed": 3},
    ]
    of_sweep = cells.named_cells("s", BASE, rows)
    states = {cell.name: State("new") for cell in of_sweep} | {
        of_sweep[0].name: begun(1.0, 3.0),
        of_sweep[2].name: begun(11.0),
        of_sweep[7].name: begun(2.0, 2.0, 2.0, 10.0, status="complete"),
    }
    # Seconds a round: 2 and 4 with batches of 8, on average 3; 11 with batches of 16.
    assert list(estimate.seconds_left(of_sweep, states).values()) == [
        2 * 3.0,
        4 * 3.0,
        3 * 11.0,
        4 * 11.0,
        4 * 3.0,  # as with another number of sites
        4 * (2 + 11 + 4) / 3,  # as with any size of a batch
        None,
        0.0,
    ]


def test_the_time_of_all_is_shared_by_the_jobs_that_run_at_once() -> None:
    of_sweep = cells.named_cells("s", BASE, [{"seed": seed} for seed in range(5)])
    states = {cell.name: State("new") for cell in of_sweep} | {
        of_sweep[0].name: begun(4.0),
        of_sweep[4].name: begun(4.0, 4.0, 4.0, 4.0, status="complete"),
    }
    places = slots.Slots(2, (), 100e9, measured={slots.shape(of_sweep[0]): 2e9})
    heading, *rows, total = estimate.lines(of_sweep, states, places)
    assert [row.split() for row in rows] == [
        ["s.seed-0", "started", "1/4", "12.0", "s", "2.0", "GB"],
        *([f"s.seed-{seed}", "new", "0/4", "16.0", "s", "2.0", "GB"] for seed in (1, 2, 3)),
        ["s.seed-4", "complete", "4/4", "2.0", "GB"],
    ]
    assert len({len(line) for line in (heading, *rows)}) == 1
    assert total == "5 jobs, 4 left; time left 30.0 s; 2 at once (2 cores, 100 GB free)"  # (12 + 3 × 16) / 2
    assert places.running == {}, "nothing is reserved"


def test_what_is_unknown_is_said() -> None:
    of_sweep = cells.named_cells("s", BASE | {"threads_per_site": None}, [{"max_seq_len": n} for n in (8, 16)])
    states = {cell.name: State("new") for cell in of_sweep}
    *_, total, note = estimate.lines(of_sweep, states, slots.Slots(4, (), 100e9))
    assert total.startswith("2 jobs, 2 left; time left unknown; 1 at once (4 cores, ")
    assert note.startswith("note: without threads_per_site a job uses all cores")
    states[of_sweep[0].name] = begun(4.0)
    *_, total, _ = estimate.lines(of_sweep, states, slots.Slots(4, (), 100e9))
    assert total.startswith("2 jobs, 2 left; time left 12.0 s and more; 1 at once (4 cores, ")
