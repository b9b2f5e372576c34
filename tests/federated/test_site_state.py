from pathlib import Path

import numpy as np
import torch

from scaling_fl.federated.site_state import SiteStateStore, tensor_name
from scaling_fl.state_file import write_state


def test_the_start_file_is_opened_once_and_each_site_gets_its_own_tensors(tmp_path: Path) -> None:
    """Reading the header of 10,000 sites' tensors takes a tenth of a second: too long to repeat for each site."""
    start = tmp_path / "start"
    write_state(start, {tensor_name(site, "m"): np.full(3, site, np.float32) for site in range(12)}, {})
    store = SiteStateStore(tmp_path / "kept", start)
    start.unlink()  # an open file survives its deletion
    for site in (11, 1, 0):
        store.load(site)["m"] += 1  # training modifies the tensors
        assert store.load(site).keys() == {"m"}
        assert store.load(site)["m"].tolist() == [site] * 3
    assert store.load(12) == {}
    store.save(1, 4, {"m": torch.ones(3)})
    assert store.load(1)["m"].tolist() == [1.0] * 3
    assert store.load(11)["m"].tolist() == [11.0] * 3


def test_the_state_as_of_a_round_is_that_rounds_while_the_next_is_under_way(tmp_path: Path) -> None:
    """Site 0 trains in rounds 1 and 2, site 1 in round 2 only, site 2 in neither; site 3 had no state at the start."""
    start = tmp_path / "start"
    before = {tensor_name(site, "m"): np.full(2, -1 - site, np.float32) for site in range(3)}
    write_state(start, before | {"classifier.bias": np.zeros(1, np.float32)}, {})
    store = SiteStateStore(tmp_path / "kept", start)

    def values(round_: int) -> dict[str, float]:
        return {name: float(array[0]) for name, array in store.as_of(round_).items()}

    started = {"site_0.m": -1.0, "site_1.m": -2.0, "site_2.m": -3.0, "classifier.bias": 0.0}
    assert values(0) == started
    for site, round_ in ((0, 1), (0, 2), (1, 2), (3, 2)):
        store.save(site, round_, {"m": torch.full((2,), 10.0 * round_ + site)})
    assert values(0) == started
    assert values(1) == started | {"site_0.m": 10.0}
    assert values(2) == started | {"site_0.m": 20.0, "site_1.m": 21.0, "site_3.m": 23.0}
    store.save(0, 11, {"m": torch.full((2,), 110.0)})
    assert values(2) == values(10) == started | {"site_0.m": 20.0, "site_1.m": 21.0, "site_3.m": 23.0}
    assert values(11)["site_0.m"] == store.load(0)["m"][0] == 110.0
    assert sorted(path.name for path in (tmp_path / "kept" / "0").iterdir()) == ["000000002", "000000011"], (
        "the last two"
    )
