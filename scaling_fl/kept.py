"""What sites keep of their optimisers (`keep_optimiser`), on its way into checkpoints and back.

Each worker leaves its sites' part in the work folder; the coordinator puts all of them into the checkpoint.
"""

from pathlib import Path
from typing import Any

import numpy.typing as npt
import safetensors.numpy

from scaling_fl.config import Config
from scaling_fl.flat import Layout
from scaling_fl.site import Site, initially_kept

PREFIX = "site_"


def _name(site: int, name: str) -> str:
    return f"{PREFIX}{site}.optimiser.{name}"


def expected(config: Config, layout: Layout) -> dict[str, npt.NDArray[Any]]:
    """What a checkpoint of this job holds of its sites, by tensor name: zeros of the right shapes."""
    if not config.keep_optimiser:
        return {}
    sites = range(len(config.site_ids))
    return {_name(site, name): array for site in sites for name, array in initially_kept(config, layout).items()}


def write(folder: Path, round_: int, site: Site) -> None:
    """Leave what the site keeps after `round_` in the work folder."""
    tensors = {_name(site.number, name): value.cpu().numpy() for name, value in site.kept.items()}
    safetensors.numpy.save_file(tensors, folder / f"kept-{round_}-{site.number}.safetensors")


def take(folder: Path, round_: int) -> dict[str, npt.NDArray[Any]]:
    """What all sites left after `round_`, by tensor name; it is gone from the work folder."""
    tensors: dict[str, npt.NDArray[Any]] = {}
    for path in folder.glob(f"kept-{round_}-*.safetensors"):
        tensors |= safetensors.numpy.load_file(path)
        path.unlink()
    return tensors


def load(path: Path, site: Site) -> None:
    """Take what the site kept out of a state file."""
    config, model = site.resident.config, site.resident.model
    names = {_name(site.number, name): name for name in initially_kept(config, model.layout)}
    with safetensors.safe_open(path, framework="pt", device=str(site.resident.device)) as file:
        site.kept.update({name: file.get_tensor(full) for full, name in names.items()})
    for name, value in site.kept.items():
        if name.endswith(".step") and config.optimiser in ("adagrad", "rmsprop"):
            site.kept[name] = value.cpu()
