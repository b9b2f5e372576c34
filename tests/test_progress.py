"""The channel on which children report to the launcher."""

import contextlib

import pytest

from scaling_fl.progress import waiting


class Channel:
    """Notes whether progress was signalled while the child still counted as waiting."""

    waiting = False

    def __init__(self) -> None:
        self.signalled: list[bool] = []

    def progress(self) -> None:
        self.signalled.append(self.waiting)


@pytest.mark.parametrize("enabled", [True, False])
def test_a_child_waits_only_where_something_is_waited_for(enabled: bool) -> None:
    """Reading a local disk, for one, isn't: a child that hangs there is hung."""
    channel = Channel()
    with contextlib.suppress(OSError), waiting(channel, enabled):  # type: ignore[arg-type]
        assert channel.waiting == enabled
        raise OSError("gone")
    assert not channel.waiting
    assert channel.signalled == [enabled], "a child that no longer waits must have made progress"
