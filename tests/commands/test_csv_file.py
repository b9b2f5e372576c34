from collections.abc import Iterator
from pathlib import Path

import pytest

from scaling_fl.commands import csv_file
from scaling_fl.errors import UserError


def test_a_file_that_cannot_be_completed_leaves_nothing(tmp_path: Path) -> None:
    def rows() -> Iterator[list[int]]:
        yield [1]
        raise OSError(28, "No space left on device")

    with pytest.raises(
        UserError, match=r"csv_path=.*p\.csv: cannot write it \(.*No space left on device\); check free"
    ):
        csv_file.write(str(tmp_path / "p.csv"), ["row"], rows())
    assert list(tmp_path.iterdir()) == []
