import os
from types import SimpleNamespace

import pytest

from scaling_fl import host
from scaling_fl.distributed import shared_memory
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


def test_without_anonymous_memory_a_file_that_is_deleted_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS."""
    monkeypatch.delattr(os, "memfd_create")
    memory = SharedMemory()
    one, other = memory.floats(2, 3), memory.floats(2, 3)
    assert os.fstat(memory.descriptor).st_nlink == 0
    memory.close()
    one[1, 2] = 7
    assert other.tolist() == [[0.0, 0.0, 0.0], [0.0, 0.0, 7.0]]


def test_too_little_memory_is_reported_in_gibibytes(memory: SharedMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "free_memory", lambda: 7 * 2**29)
    with pytest.raises(UserError, match=r"shared memory: 3\.50 GiB of memory are free, 4096\.00 GiB are needed"):
        memory.floats(2**20, 2**20)


@pytest.mark.parametrize(("columns", "fits"), [(768, True), (769, False)])
def test_memory_is_refused_only_beyond_what_is_available(
    memory: SharedMemory, monkeypatch: pytest.MonkeyPatch, columns: int, fits: bool
) -> None:
    """3 kB, of 1,024 bytes each, are 768 float32 values."""
    monkeypatch.setattr(host, "free_memory", lambda: 3 * 1024)
    if fits:
        assert memory.floats(1, columns).shape == (1, columns)
    else:
        with pytest.raises(UserError, match="use fewer site_ids"):
            memory.floats(1, columns)


def test_memory_that_another_process_has_filled_is_not_needed_again(
    memory: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 pages of 4 KiB are 16 × 1,024 float32 values. The first process has filled or pinned 12 of them."""
    pages, values = 16, 16 * 1024
    memory.floats(1, values)[0, : 12 * 1024] = 1
    for free, fits in ((pages - 12, True), (pages - 13, False)):
        monkeypatch.setattr(host, "free_memory", lambda free=free: free * 4096)
        if fits:
            assert memory.floats(1, values)[0, 0] == 1
        else:
            with pytest.raises(UserError, match="use fewer site_ids"):
                memory.floats(1, values)


def test_the_shortage_that_nccl_reports_is_explained_with_the_sizes_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """16,384 blocks of 4 KiB are 64 MiB; 256 free ones are 1 MiB."""
    found = SimpleNamespace(f_frsize=4096, f_blocks=16384, f_bavail=256)
    monkeypatch.setattr(shared_memory.os, "statvfs", lambda place: found)
    message = "Error while creating shared memory segment /dev/shm/nccl-1YsMbG (size 9637888)"
    explained = shared_memory.nccl_shared_memory_shortage(message, "/dev/shm")
    assert explained.startswith(
        "NCCL can't allocate 9.2 MiB for the traffic between GPUs: /dev/shm has 64 MiB, of which 1 MiB are free, "
    )
    assert shared_memory.nccl_shared_memory_shortage("another error") == ""


def test_a_view_outlives_the_file_which_is_closed() -> None:
    memory = SharedMemory()
    view = memory.floats(1, 2)
    memory.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(memory.descriptor)
    view[0, 1] = 3
    assert view.tolist() == [[0.0, 3.0]]
