"""What sites keep from round to round (`keep_optimiser`): in files, since it may be more than memory holds."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch

from scaling_fl.state_file import Arrays, TensorFiles

PREFIX = "site_"


def tensor_name(site: int, tensor: str) -> str:
    """The name, in a checkpoint, of a tensor that a site keeps."""
    return f"{PREFIX}{site}.{tensor}"


class SiteStateStore:
    """Each site's tensors as they were after the rounds in which it trained, shared by the workers of a machine.

    What a round leaves is there until the next round but one, so that a complete round can be published while the
    next is under way.
    """

    def __init__(self, folder: Path, start: Path):
        """`folder` is the store's own; `start`: the state file that the job goes on from."""
        self._folder, self._start = folder, start
        self._opened = TensorFiles(start)  # once: its header tells of all sites, and takes long to read
        self._at_start: dict[str, list[str]] = defaultdict(list)
        for full in self._opened:
            self._at_start[full.partition(".")[0]].append(full)
        folder.mkdir(exist_ok=True)

    def load(self, site: int) -> dict[str, torch.Tensor]:
        """What the site has kept last, by name, on the CPU; nothing before its first round."""
        own = self._rounds(self._folder / str(site))
        file = TensorFiles(own[-1]) if own else self._opened
        names = file if own else self._at_start[f"{PREFIX}{site}"]
        return {full.partition(".")[2]: torch.from_numpy(file[full]) for full in names}

    def save(self, site: int, round_: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Keep these, on whatever device they are, as those after `round_`."""
        folder = self._folder / str(site)
        folder.mkdir(exist_ok=True)
        earlier = self._rounds(folder)
        on_cpu = {tensor_name(site, tensor): value.cpu() for tensor, value in tensors.items()}
        safetensors.torch.save_file(on_cpu, folder / f"{round_:09d}")
        for path in earlier[:-1]:
            path.unlink()

    def as_of(self, round_: int) -> Arrays:
        """What all sites kept when `round_` was complete, under the names that checkpoints give it.

        Holds the server's tensors of the start, too.
        """
        last = f"{round_:09d}"
        folders = [self._rounds(folder) for folder in self._folder.iterdir()]
        paths = [[path for path in rounds if path.name <= last][-1:] for rounds in folders]
        return TensorFiles(self._start, *(path for found in paths for path in found))

    def _rounds(self, folder: Path) -> list[Path]:
        return sorted(folder.iterdir()) if folder.exists() else []
