"""Checkpoints by round: saving the server state, finding the newest intact one, and removing old ones."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaling_fl.checkpoint.retries import retry
from scaling_fl.checkpoint.storage import OnProgress, Storage, no_progress
from scaling_fl.errors import UserError
from scaling_fl.state_file import Arrays, Damaged, read_state, write_state

_NAME = re.compile(r"round-(\d{6,})\.safetensors")


class CheckpointStore(Storage):
    """The checkpoints in `checkpoints_dir`, one file for each round."""

    def rounds(self) -> list[int]:
        """Rounds with a checkpoint, newest first. Other files are ignored."""
        return sorted((number for number in map(round_of, self.sizes()) if number is not None), reverse=True)

    def save(
        self, round_: int, tensors: Arrays, header: Mapping[str, Any], on_progress: OnProgress = no_progress
    ) -> str:
        """Publish the state after `round_` atomically, and return its full name.

        Transient errors of an object store are retried for a few minutes, then raised as `UserError`.
        """
        name = _file_name(round_)
        with self._as_user_error(f"cannot write {name}"), self._workspace() as folder:
            path = Path(folder) / name
            write_state(path, tensors, dict(header) | {"round": round_})
            retry(lambda: self._publish(path, name, on_progress), self.fs, on_progress)
        return self.url_of(name)

    def fetch_newest(self, path: Path) -> tuple[Arrays, dict[str, Any], list[str]] | None:
        """Copy the newest intact checkpoint to `path`; return its tensors, its header and the damage to newer ones.

        Damaged checkpoints stay in place until `set_aside`. Returns `None` if there are no checkpoints. Raises
        `UserError` if all are damaged: a new start would overwrite them.
        """
        damaged: list[str] = []
        with self._as_user_error("cannot read it"):
            for round_ in self.rounds():
                name = _file_name(round_)
                try:
                    return *self._fetch(round_, path), damaged
                except Damaged as error:
                    damaged.append(f"{name} is damaged ({error})")
        if damaged:
            raise UserError(
                f"checkpoints_dir={self.url}: found only damaged checkpoints: {'; '.join(damaged)}. "
                "Restore one, or choose another folder to start again"
            )
        return None

    def fetch(self, round_: int, path: Path) -> tuple[Arrays, dict[str, Any]]:
        """Copy the checkpoint of a round to `path`; return its tensors and header. Raises `UserError` if it can't be used."""
        name = _file_name(round_)
        with self._as_user_error(f"cannot read {name}"):
            try:
                return self._fetch(round_, path)
            except Damaged as error:
                raise UserError(
                    f"{self.url_of(name)}: it is damaged ({error}); restore it, or choose another checkpoint"
                ) from error

    def _fetch(self, round_: int, path: Path) -> tuple[Arrays, dict[str, Any]]:
        self.fs.get_file(f"{self.root}/{_file_name(round_)}", str(path))
        if path.is_dir():
            path.rmdir()
            raise Damaged("it is a folder")
        tensors, header = read_state(path)
        if header.get("round") != round_:
            raise Damaged(f"it was written as round {header.get('round')}")
        return tensors, header

    def set_aside(self, newer_than: int) -> None:
        """Rename the checkpoints of rounds after `newer_than`, so that they are no longer listed."""
        for round_ in self.rounds():
            if round_ > newer_than:
                self.rename(_file_name(round_), f"{_file_name(round_)}.damaged")

    def prune(self, keep: int, best: int | None) -> str | None:
        """Remove all checkpoints but the newest `keep` (0: keep all) and that of round `best`.

        Returns an error message instead of raising: surplus checkpoints are no reason to end a job.
        """
        try:
            for round_ in self.rounds()[keep:] if keep else ():
                if round_ != best:
                    self.fs.rm_file(f"{self.root}/{_file_name(round_)}")
        except Exception as error:  # every file system raises its own exceptions
            return (
                f"checkpoints_dir={self.url}: cannot remove old checkpoints ({type(error).__name__}: {error}); check "
                "the permissions"
            )
        return None


def round_of(name: str) -> int | None:
    """The round of the checkpoint with this file name; `None` if it is another file."""
    match = _NAME.fullmatch(name)
    # \d also matches non-ASCII digits and extra leading zeros: only the exact name that `save` writes counts.
    return int(match[1]) if match and _file_name(int(match[1])) == name else None


def _file_name(round_: int) -> str:
    return f"round-{round_:06d}.safetensors"
