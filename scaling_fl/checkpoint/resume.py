"""Whether a job can resume from a checkpoint: same job, same settings, same data, same model, finite tensors."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from scaling_fl import state_file
from scaling_fl.checkpoint.header import check_header
from scaling_fl.config import compatibility
from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError
from scaling_fl.federated import cohort, site_state
from scaling_fl.federated.local_optimiser import site_state_template
from scaling_fl.models.flat_parameters import Layout


def check(
    config: Config,
    header: dict[str, Any],
    digest: str,
    origin: Mapping[str, Any],
    tensors: state_file.Arrays,
    initial: state_file.Arrays,
    num_sites: int,
) -> None:
    """Raises `UserError` if the job can't resume from the checkpoint with this `header` and these `tensors`.

    `digest`: of the data. `origin`: of the model, see `check_origin`. `initial`: the state a new job would start from.
    """
    source = f"checkpoints_dir={config.checkpoints_dir}: round {header.get('round')}"
    check_header(source, header)
    _check_same_job(config, header, digest, num_sites)
    check_origin(config, header, origin)
    _check_same_tensors(source, tensors, initial)
    check_finite(source, tensors)


def _check_same_tensors(source: str, tensors: state_file.Arrays, expected: state_file.Arrays) -> None:
    def kind(arrays: state_file.Arrays, name: str) -> str:
        array = arrays.get(name)
        return "nothing" if array is None else f"{array.dtype} {list(array.shape)}"

    for name in sorted(tensors.keys() | expected.keys()):
        if kind(tensors, name) != kind(expected, name):
            raise UserError(
                f"{source}: this checkpoint belongs to another model (tensor {name}: found {kind(tensors, name)}, expected "
                f"{kind(expected, name)}); go back to the model and library versions the job started with, or choose "
                "another folder"
            )


def expected_site_state(
    config: Config, layout: Layout, num_sites: int, tensors: state_file.Arrays
) -> dict[str, npt.NDArray[Any]]:
    """The initial site state, by tensor name, of the sites that have state in the checkpoint `tensors`."""
    found = {name.partition(".")[0] for name in tensors}
    sites = [site for site in range(num_sites) if f"{site_state.PREFIX}{site}" in found]
    return {
        site_state.tensor_name(site, name): array
        for name, array in site_state_template(config, layout).items()
        for site in sites
    }


def check_finite(source: str, tensors: state_file.Arrays) -> None:
    """Raises `UserError` if a tensor contains NaN or infinity."""
    for name, array in tensors.items():  # one at a time: together they may exceed memory
        if not np.isfinite(array.sum(dtype=np.float64)):
            raise UserError(f"{source}: {name} contains NaN or infinite values; restore it, or use another one")


def _check_same_job(config: Config, header: dict[str, Any], digest: str, num_sites: int) -> None:
    if header["job_name"] != config.job_name:
        raise UserError(
            f"checkpoints_dir={config.checkpoints_dir}: it holds the checkpoints of job {header['job_name']}; "
            f"set job_name={header['job_name']} to resume it, or choose another folder"
        )
    before = dict(header["config"])
    if header.get("origin"):  # it identifies the model, whose path may change
        before["model"] = config.model
    if header.get("cohort_rules", 1) == 1 and cohort.size(config, num_sites) == num_sites:
        if config.sampling == before.get("sampling") == "by_examples":
            raise UserError(
                f"sampling='by_examples': when job {config.job_name} started, a cohort of all {num_sites} sites was not "
                "drawn, and each site took part in every round; now sites are drawn with replacement; set "
                "sampling=uniform to go on as before, or start a new job"
            )
        before["sampling"] = "uniform"
    compatibility.check_config(config, before)
    compatibility.check_data(config, header["data_digest"], digest)


def check_origin(config: Config, header: Mapping[str, Any], origin: Mapping[str, Any]) -> None:
    """Raises `UserError` if the model or its tokens differ from those the job started with, even under the same path.

    `origin`: digests of the pre-trained "weights" and of the "tokens", the "architecture", and the "padding", as far as
    known yet. Only architecture keys known to both library versions are compared. Earlier checkpoints have no origin, or
    one without padding: 0.1.0 padded on the right, to the longest text of the batch.
    """
    before = header.get("origin") or {}
    changed = [
        f"digest of the {what} was {before[what][:12]}…, is now {origin[what][:12]}…"
        for what in ("weights", "tokens")
        if what in before and what in origin and before[what] != origin[what]
    ]
    padding = before.get("padding", [False, 1])
    if before and origin.get("padding", padding) != padding:
        changed.append(f"padding was {padding}, is now {origin['padding']}")
    was, now = before.get("architecture", {}), origin["architecture"]
    changed += [
        f"{key} was {was[key]!r}, is now {now[key]!r}" for key in was.keys() & now.keys() if was[key] != now[key]
    ]
    if changed:
        raise UserError(
            f"job_name={config.job_name}: model={config.model} differs from the model the job started with "
            f"({header['config'].get('model')}): {'; '.join(sorted(changed))}; restore that model, or start a new job"
        )


def agree_on_threads(config: Config, threads: int, header: dict[str, Any], notes: list[str]) -> int:
    """The checkpoint's number of threads, unless `threads_per_site` is set. Notes a change."""
    if config.threads_per_site is None:
        return int(header["threads"])
    if threads != header["threads"]:
        notes.append(
            f"threads_per_site was {header['threads']}, is now {threads}: results will agree closely, but not bitwise"
        )
    return threads


def compare_environments(before: dict[str, str], now: dict[str, str], notes: list[str]) -> None:
    """Note which versions differ from those in the checkpoint."""
    changed = [f"{name} {was} → {now.get(name)}" for name, was in before.items() if now.get(name) != was]
    if changed:
        notes.append(f"the job resumes in another environment ({', '.join(changed)}): results may not agree bitwise")
