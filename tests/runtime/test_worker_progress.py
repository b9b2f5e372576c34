from typing import Any

import pytest

from scaling_fl.runtime.worker_progress import WorkerProgress


class Sent(list[dict[str, Any]]):
    """A `Send` that keeps the events."""

    steps = 0

    def __call__(self, event: dict[str, Any]) -> None:
        self.append(event)

    def progress(self) -> None:
        self.steps += 1


@pytest.fixture
def sent() -> Sent:
    return Sent()


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


def test_at_most_four_events_a_second_are_sent_and_every_step_is_a_sign_of_life(sent: Sent) -> None:
    clock = Clock()
    progress = WorkerProgress(sent, 2, clock)
    progress.restart(7)
    progress.site_begins(5)
    for _ in range(1000):
        progress.step()
        clock.now += 1 / 128
    assert sent.steps == 1000
    assert [event["done"] for event in sent] == list(range(1, 1000, 32)), "every 0.25 s"
    assert sent[0] == {
        "event": "progress", "worker": 2, "round": 7, "done": 1, "site": 5, "site_done": 1, "trained": [],
    }  # fmt: skip


def test_events_say_which_sites_were_trained_since_the_last_and_the_end_is_always_told(sent: Sent) -> None:
    clock = Clock()
    progress = WorkerProgress(sent, 0, clock)
    progress.restart(1)
    for site in (4, 1, 3):
        progress.site_begins(site)
        for _ in range(2):
            progress.step()
        progress.site_ends(site, site / 8, site / 4)
        clock.now += 0.1 if site == 4 else 0.2
    assert [(event["done"], event["site"], event["site_done"]) for event in sent] == [(1, 4, 1), (5, 3, 1)]
    assert [event["trained"] for event in sent] == [[], [(4, 0.5, 1.0), (1, 0.125, 0.25)]]
    progress.sites_end()
    assert (sent[-1]["done"], sent[-1]["site"], sent[-1]["trained"]) == (6, None, [(3, 0.375, 0.75)])
    clock.now += 0.25
    progress.step()  # a batch of the evaluation
    assert (sent[-1]["done"], sent[-1]["site"], sent[-1]["trained"]) == (7, None, [])
    progress.restart(2)
    progress.sites_end()
    assert len(sent) == 4, "without sites in this round, there is nothing to tell"
