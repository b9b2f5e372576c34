"""The state that sites keep between rounds (`keep_optimiser`, local-only models), in files: it may exceed memory."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch

from scaling_fl.state_file import Arrays, TensorFiles

PREFIX = "site_"


def tensor_name(site: int, tensor: str) -> str:
    """Return the name of a site's tensor in a checkpoint."""
    return f"{PREFIX}{site}.{tensor}"


class SiteStateStore:
    """The sites' tensors after their last rounds, shared by the workers of a machine.

    A site's last two states are kept, so that a complete round can be checkpointed while the next is under way.
    """

    def __init__(self, folder: Path, start: Path):
        """`folder` belongs to the store; `start` is the state file that the job starts from."""
        self._folder, self._start = folder, start
        self._opened = TensorFiles(start)  # once: its header lists all sites and takes long to read
        self._at_start: dict[str, list[str]] = defaultdict(list)
        for full in self._opened:
            self._at_start[full.partition(".")[0]].append(full)
        folder.mkdir(exist_ok=True)

    def load(self, site: int) -> dict[str, torch.Tensor]:
        """Return the site's latest tensors by name, on the CPU; empty before its first round."""
        own = self._rounds(self._folder / str(site))
        file = TensorFiles(own[-1]) if own else self._opened
        names = file if own else self._at_start[f"{PREFIX}{site}"]
        return {full.partition(".")[2]: torch.from_numpy(file[full]) for full in names}

    def save(self, site: int, round_: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Save the site's tensors, which may be on any device, as its state after `round_`."""
        folder = self._folder / str(site)
        folder.mkdir(exist_ok=True)
        earlier = self._rounds(folder)
        on_cpu = {tensor_name(site, tensor): value.cpu() for tensor, value in tensors.items()}
        safetensors.torch.save_file(on_cpu, folder / f"{round_:09d}")
        for path in earlier[:-1]:
            path.unlink()

    def as_of(self, round_: int) -> Arrays:
        """Return all sites' tensors as of the end of `round_`, by checkpoint name.

        The server's tensors of `start` are included.
        """
        last = f"{round_:09d}"
        folders = [self._rounds(folder) for folder in self._folder.iterdir()]
        paths = [[path for path in rounds if path.name <= last][-1:] for rounds in folders]
        return TensorFiles(self._start, *(path for found in paths for path in found))

    def _rounds(self, folder: Path) -> list[Path]:
        return sorted(folder.iterdir()) if folder.exists() else []
