"""Several nodes as one job: what all must have alike, and the plan that they make together."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError
from scaling_fl.federated.run_plan import Plan
from scaling_fl.runtime.nodes.control_link import ControlLink

# What nodes may have of their own.
_PER_NODE_KEYS = {
    "site_ids", "train_path", "test_path", "dataset", "model", "author", "threads_per_site", "checkpoints_dir", "job_name",
    "stall_timeout",
}  # fmt: skip


def agree_on_config(config: Config, link: ControlLink) -> Config:
    """The configuration with what concerns all nodes. Raises `UserError` where they contradict each other."""
    if link.node.count == 1:
        return config
    everyone = link.exchange(config.to_mapping())
    for rank, theirs in enumerate(everyone):
        differing = [
            key for key, value in theirs.items() if key not in _PER_NODE_KEYS and value != everyone[0].get(key)
        ]
        if differing or theirs.keys() != everyone[0].keys():
            said = ", ".join(f"{key}={theirs[key]!r} and {everyone[0].get(key)!r}" for key in differing)
            raise UserError(
                f"node {rank} and node 0 were told different things: {said or 'other keys'}; give all the same"
            )
    total = sum(len(theirs["site_ids"]) for theirs in everyone)
    if config.keeps_site_state:
        raise UserError(
            f"{'keep_optimiser=True' if config.keep_optimiser else 'baseline=local_only'}: what sites keep stays on their "
            "node, so that no checkpoint could hold it; use one node, or leave it out"
        )
    if config.num_sites is not None and config.num_sites < total:
        raise UserError(
            f"num_sites={config.num_sites}: fewer than the {total} processes of all nodes; use fewer of them"
        )
    one_per_process = config.num_sites is None and config.partition != "column"
    return dataclasses.replace(
        config,
        num_sites=total if one_per_process else config.num_sites,
        job_name=everyone[0]["job_name"],
        checkpoints_dir=config.checkpoints_dir if link.node.rank == 0 else None,  # node 0 reads and writes them
    )


def join_plans(plan: Plan, link: ControlLink) -> Plan:
    """The plan of all nodes together, on each of them. Raises `UserError` where their data or models differ."""
    if link.node.count == 1:
        return plan
    mine = {
        "digests": plan.digests, "devices": plan.devices, "threads": plan.threads, "round": plan.round,
        "finished": plan.finished, "reported": plan.reported, "metrics": plan.metrics, "port": plan.port,
        "environment": plan.environment,
    }  # fmt: skip
    everyone = link.exchange(mine)
    first = everyone[0]
    for rank, theirs in enumerate(everyone):
        _check_same(rank, theirs, first)
    return dataclasses.replace(
        plan,
        devices=tuple(device for theirs in everyone for device in theirs["devices"]),
        nodes=tuple(rank for rank, theirs in enumerate(everyone) for _ in theirs["devices"]),
        node=link.node.rank,
        threads=first["threads"],
        round=first["round"],
        finished=first["finished"],
        reported=first["reported"],
        metrics=first["metrics"],
        rendezvous=f"tcp://{link.node.address}:{first['port']}",
        interface=link.interface(),
        notes=(*plan.notes, *_differences(everyone)),
    )


def _check_same(rank: int, theirs: Mapping[str, Any], first: Mapping[str, Any]) -> None:
    for what, digest in first["digests"].items():
        if theirs["digests"][what] != digest:
            raise UserError(
                f"node {rank} and node 0 have different {what} (digest {theirs['digests'][what][:12]}… and {digest[:12]}…); "
                "give all nodes the same files, and the same versions of the libraries"
            )
    kinds = [(node["devices"][0].partition(":")[0], node["environment"]["precision"]) for node in (theirs, first)]
    if kinds[0] != kinds[1]:
        raise UserError(
            f"node {rank} trains on {kinds[0][0]} in {kinds[0][1]}, node 0 on {kinds[1][0]} in {kinds[1][1]}; give all the "
            "same kind (site_ids=[-1] for the CPU, precision=…), and see whether each node's GPUs are there"
        )


def _differences(everyone: Sequence[Mapping[str, Any]]) -> list[str]:
    """Notes on environments that differ, so that results may not agree bitwise with those of others."""
    first, notes = everyone[0]["environment"], []
    for rank, theirs in enumerate(everyone):
        changed = [
            f"{name} {value}, not {first.get(name)}"
            for name, value in theirs["environment"].items()
            if value != first.get(name)
        ]
        if changed:
            notes.append(f"node {rank} has another environment than node 0 ({', '.join(changed)})")
    return notes
