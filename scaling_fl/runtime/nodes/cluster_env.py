"""This node's rank and the number of nodes, from the environment variables that clusters set."""

import dataclasses
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from scaling_fl.errors import UserError


@dataclass(frozen=True)
class Node:
    """One machine, or container, of a job: number `rank` of `count`. Node 0 listens at `address`, `port`."""

    rank: int = 0
    count: int = 1
    address: str = ""
    port: int = 29500


def this_node(environ: Mapping[str, str]) -> Node:
    """This node, from the first of these sets of variables that is set; a single node if none is.

    Vertex AI (`CLUSTER_SPEC`), Kubeflow (`PET_NNODES`, `PET_NODE_RANK`, …), torchrun with one process per node, the plain
    `WORLD_SIZE` (of nodes), `RANK`, `MASTER_ADDR`, `MASTER_PORT`. Raises `UserError` if the values are invalid.
    """
    if int(environ.get("LOCAL_WORLD_SIZE") or 1) > 1:
        raise UserError(
            f"LOCAL_WORLD_SIZE={environ['LOCAL_WORLD_SIZE']}: start one process per node (torchrun --nproc-per-node=1): "
            "scaling_fl itself starts one per entry of site_ids"
        )
    if environ.get("CLUSTER_SPEC"):
        node = _vertex(environ["CLUSTER_SPEC"])
    elif environ.get("PET_NNODES"):
        node = _variables(environ, "PET_NODE_RANK", "PET_NNODES", "PET_MASTER_ADDR", "PET_MASTER_PORT")
    else:
        node = _variables(environ, "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if environ.get("TORCHELASTIC_RUN_ID"):  # torchrun itself listens on that port
        node = dataclasses.replace(node, port=node.port + 1)
    if not 0 <= node.rank < node.count:
        raise UserError(
            f"node {node.rank} of {node.count}: ranks go from 0 to {node.count - 1}; give each node its own rank"
        )
    _check_interfaces(environ, node)
    return node


def _check_interfaces(environ: Mapping[str, str], node: Node) -> None:
    """Refuse an interface that doesn't exist, or can't lead to the other nodes: the loopback interface."""
    present = [name for _, name in socket.if_nameindex()]
    for missing in environ.get("GLOO_SOCKET_IFNAME", "").split(","):
        if missing and missing not in present:
            raise UserError(
                f"GLOO_SOCKET_IFNAME={missing}: this machine has no such network interface; choose from "
                f"{', '.join(present)}, or unset the variable"
            )
    if node.count == 1 or node.address.startswith(("localhost", "127.", "::1")):
        return
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if environ.get(name) in ("lo", "lo0"):
            raise UserError(
                f"{name}={environ[name]}: this is the loopback interface, which doesn't lead to {node.address}; name the "
                "interface between the nodes, or unset the variable"
            )


def _vertex(text: str) -> Node:
    """Node 0 is the only replica of pool 0; the replicas of the other pools follow, in pool order."""
    try:
        spec = json.loads(text)
        pools = sorted(
            (name, hosts) for name, hosts in spec["cluster"].items() if name.startswith("workerpool") and hosts
        )
        before = {name: sum(len(hosts) for _, hosts in pools[:number]) for number, (name, _) in enumerate(pools)}
        host, _, port = pools[0][1][0].rpartition(":")
        rank = before[spec["task"]["type"]] + int(spec["task"]["index"])
        return Node(rank, sum(len(hosts) for _, hosts in pools), host, int(port))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(
            f"CLUSTER_SPEC={text!r}: not in Vertex AI's format ({type(error).__name__}: {error}); unset or correct it"
        ) from error


def _variables(environ: Mapping[str, str], rank: str, count: str, address: str, port: str) -> Node:
    def number(name: str, default: int) -> int:
        text = environ.get(name) or str(default)
        try:
            return int(text)
        except ValueError as error:
            raise UserError(f"{name}={text!r}: expected a whole number; correct or unset it") from error

    node = Node(number(rank, 0), number(count, 1), environ.get(address) or "", number(port, 29500))
    if node.count > 1 and not node.address:
        raise UserError(f"{count}={node.count}: {address} must name node 0's host; set it on all nodes")
    if node.count > 1 and not environ.get(rank):
        raise UserError(
            f"{count}={node.count}: {rank} must say which node this is, from 0 to {node.count - 1}; set it on each node"
        )
    return node
