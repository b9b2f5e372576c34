import pytest

from scaling_fl.distributed.shared_memory import SharedMemory
from scaling_fl.errors import UserError


@pytest.fixture
def memory():  # type: ignore[no-untyped-def]
    memory = SharedMemory()
    yield memory
    memory.close()


def test_two_views_are_of_the_same_memory(memory: SharedMemory) -> None:
    one, other = memory.floats(2, 3), memory.floats(2, 3)
    assert one.tolist() == [[0.0] * 3] * 2
    one[1, 2] = 7
    assert other[1, 2] == 7


def test_memory_that_can_not_be_had_is_named_in_gibibytes(memory: SharedMemory) -> None:
    with pytest.raises(UserError, match=r"shared memory: \d+\.\d\d GiB of memory are free, 4096\.00 GiB are needed"):
        memory.floats(2**20, 2**20)
