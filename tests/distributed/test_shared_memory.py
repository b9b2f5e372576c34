import pytest

from scaling_fl.distributed.shared_memory import SharedMemory
from scaling_fl.errors import UserError


@pytest.fixture
def memory():  # type: ignore[no-untyped-def]
    memory = SharedMemory()
    yield memory
    memory.close()


def test_two_views_share_the_same_memory(memory: SharedMemory) -> None:
    one, other = memory.floats(2, 3), memory.floats(2, 3)
    assert one.tolist() == [[0.0] * 3] * 2
    one[1, 2] = 7
    assert other[1, 2] == 7


def test_too_little_memory_is_reported_in_gibibytes(memory: SharedMemory) -> None:
    with pytest.raises(UserError, match=r"shared memory: \d+\.\d\d GiB of memory are free, 4096\.00 GiB are needed"):
        memory.floats(2**20, 2**20)
