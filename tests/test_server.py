import pytest
import torch

from scaling_fl.server import SGD, ServerState


@pytest.mark.parametrize("part", [slice(0, 6), slice(0, 3), slice(2, 6), slice(4, 6), slice(3, 3)])
def test_a_part_of_the_state_is_updated_in_place(part: slice) -> None:
    state = ServerState(params=torch.arange(6.0), trained=4, round=0)
    delta = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    SGD(learning_rate=0.5).step(state, delta[part].clone(), part)
    # Trained values move by half the delta; what lies behind them takes the plain mean.
    after = [0 - 0.5, 1 - 1.0, 2 - 1.5, 3 - 2.0, 4 - 5.0, 5 - 6.0]
    expected = torch.arange(6.0)
    expected[part] = torch.tensor(after)[part]
    assert state.params.tolist() == expected.tolist()


def test_fedavg_is_rate_1() -> None:
    state = ServerState(params=torch.tensor([1.0]), trained=1, round=0)
    SGD().step(state, torch.tensor([0.25]), slice(0, 1))
    assert state.params.item() == 0.75
