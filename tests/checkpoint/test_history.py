"""The history in a checkpoint's header: bounded, the newest rounds first, and readable as before."""

import json
from pathlib import Path

import numpy as np
import pytest

from scaling_fl.checkpoint import history
from scaling_fl.checkpoint.header import check_header, checkpoint_header
from scaling_fl.checkpoint.history import History
from scaling_fl.federated import metrics
from scaling_fl.federated.metrics import SiteMetrics
from scaling_fl.state_file import read_state, write_state
from tests.tracking import builders

SAFETENSORS_LIMIT = 100_000_000  # bytes; its reader refuses longer headers


def results(round_: int, num_sites: int) -> dict[str, float]:
    sites = [SiteMetrics(site, 1 / (3 + site + round_), 1, 7 + site) for site in range(num_sites)]
    return metrics.training(sites)


def test_a_header_stays_far_below_the_limit_however_many_rounds_and_sites(tmp_path: Path) -> None:
    """The file of a late round is written and read; without a bound, it would be twice as long already."""
    num_sites, num_rounds = metrics.MAX_SITES_WITH_METRICS, 2000
    one = results(1, num_sites)
    size = len(json.dumps(one))
    assert size * num_rounds > 2 * history.MAX_BYTES
    kept = History()
    for round_ in range(num_rounds):
        kept.add(round_, one)
    header = checkpoint_header(builders.plan(), one, None, True, kept.before(num_rounds))
    check_header("here", header | {"round": num_rounds, "origin": None})
    write_state(tmp_path / "state", {"w": np.ones(1)}, header | {"round": num_rounds})
    # The header is a JSON text within JSON: each quotation mark takes another byte, and each result has two.
    marks = 2 * len(one) * len(header["history"])
    length = int.from_bytes((tmp_path / "state").read_bytes()[:8], "little")
    assert length < history.MAX_BYTES + marks + 100_000 < SAFETENSORS_LIMIT / 10
    found = read_state(tmp_path / "state")[1]["history"]
    assert list(found) == [str(round_) for round_ in range(num_rounds - len(found), num_rounds)]
    assert history.MAX_BYTES // (size + 20) <= len(found) <= history.MAX_BYTES // size


def test_a_history_that_fits_is_whole_and_a_longer_one_of_an_earlier_version_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds = {str(round_): results(round_, 3) for round_ in range(12)}
    mixed = dict(reversed(rounds.items()))  # JSON has no order
    assert History(mixed).before(12) == rounds
    assert History(mixed).before(5) == {number: rounds[number] for number in ("0", "1", "2", "3", "4")}
    monkeypatch.setattr(history, "MAX_BYTES", sum(len(json.dumps({n: rounds[n]})) for n in ("9", "10", "11")))
    cut = History(mixed)
    assert list(cut.before(12)) == ["9", "10", "11"]
    cut.add(12, results(12, 1))
    assert list(cut.before(13)) == ["10", "11", "12"]
