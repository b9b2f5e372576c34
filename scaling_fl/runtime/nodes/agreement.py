"""Agreement between nodes: the keys, data and models that must be the same, and the joint plan."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError
from scaling_fl.federated.run_plan import Plan
from scaling_fl.runtime.nodes.control_link import ControlLink

# Keys that may differ between nodes.
_PER_NODE_KEYS = {
    "site_ids", "train_path", "test_path", "dataset", "model", "author", "threads_per_site", "checkpoints_dir", "job_name",
    "stall_timeout", "verbosity",
}  # fmt: skip


def agree_on_config(config: Config, link: ControlLink) -> Config:
    """The configuration, completed from all nodes. Raises `UserError` if their configurations differ."""
    if link.node.count == 1:
        return config
    everyone = link.all_gather(config.to_mapping())
    for rank, theirs in enumerate(everyone):
        differing = [
            key for key, value in theirs.items() if key not in _PER_NODE_KEYS and value != everyone[0].get(key)
        ]
        if differing or theirs.keys() != everyone[0].keys():
            raise UserError(f"node {rank} and node 0 have {_difference(differing, theirs, everyone[0])}")
    total = sum(len(theirs["site_ids"]) for theirs in everyone)
    if config.keeps_site_state:
        raise UserError(
            f"{_keeps_state(config)}: sites keep state on their own "
            "node, where no checkpoint could include it; use one node, or leave it out"
        )
    if config.aggregation != "mean":
        raise UserError(
            f"aggregation={config.aggregation}: it compares the deltas of all sites, which no node has; use one node, or "
            "aggregation=mean"
        )
    if config.num_sites is not None and config.num_sites < total:
        raise UserError(
            f"num_sites={config.num_sites}: fewer than the {total} processes on all nodes; raise num_sites or shorten "
            "site_ids"
        )
    one_per_process = config.num_sites is None and config.partition != "column"
    return dataclasses.replace(
        config,
        num_sites=total if one_per_process else config.num_sites,
        job_name=everyone[0]["job_name"],
        checkpoints_dir=config.checkpoints_dir if link.node.rank == 0 else None,  # node 0 reads and writes them
    )


def _keeps_state(config: Config) -> str:
    """The key because of which sites keep state."""
    if config.scaffold is not None:
        return f"scaffold={config.scaffold}"
    if config.feddyn_alpha > 0:
        return f"feddyn_alpha={config.feddyn_alpha:g}"
    if config.personal is not None:
        return f"personal={config.personal}"
    if config.ditto_lambda > 0:
        return f"ditto_lambda={config.ditto_lambda:g}"
    if config.keeps_upload_error:
        return f"upload={config.upload} error_feedback=True"
    return "keep_optimiser=True" if config.keep_optimiser else "baseline=local_only"


def _difference(differing: Sequence[str], theirs: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    if not differing:
        return "different sets of keys; run the same version of scaling_fl on every node"
    values = ", ".join(f"{key}={theirs[key]!r} and {first.get(key)!r}" for key in differing)
    return f"different configurations: {values}; use the same values on every node"


def join_plans(plan: Plan, link: ControlLink) -> Plan:
    """The joint plan of all nodes, on each node. Raises `UserError` if their data or models differ."""
    if link.node.count == 1:
        return plan
    mine = {
        "digests": plan.digests, "devices": plan.devices, "threads": plan.threads, "round": plan.round,
        "finished": plan.finished, "reported": plan.reported, "metrics": plan.metrics, "port": plan.port,
        "environment": plan.environment,
    }  # fmt: skip
    everyone = link.all_gather(mine)
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
                "use the same files and library versions on every node"
            )
    kinds = [(node["devices"][0].partition(":")[0], node["environment"]["precision"]) for node in (theirs, first)]
    if kinds[0] != kinds[1]:
        raise UserError(
            f"node {rank} trains on {kinds[0][0]} in {kinds[0][1]}, node 0 on {kinds[1][0]} in {kinds[1][1]}; use the "
            "same on every node (site_ids=[-1] for the CPU, precision=…), and check that each node sees its GPUs"
        )


def _differences(everyone: Sequence[Mapping[str, Any]]) -> list[str]:
    """Notes on environments that differ, because results may then not be bitwise reproducible."""
    first, notes = everyone[0]["environment"], []
    for rank, theirs in enumerate(everyone):
        changed = [
            f"{name} {value}, not {first.get(name)}"
            for name, value in theirs["environment"].items()
            if value != first.get(name)
        ]
        if changed:
            notes.append(f"node {rank} has a different environment from node 0 ({', '.join(changed)})")
    return notes
