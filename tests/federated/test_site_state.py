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
