import json
from typing import Any

import pytest

from scaling_fl.errors import UserError
from scaling_fl.runtime.nodes import cluster_env
from scaling_fl.runtime.nodes.cluster_env import Node

VERTEX = {"cluster": {"workerpool0": ["p-0:2222"], "workerpool1": ["q-0:2222", "q-1:2222"]}, "task": {"type": "workerpool1", "index": 1}}  # fmt: skip
PLAIN = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29400", "WORLD_SIZE": "3", "RANK": "2"}
KUBEFLOW = {"PET_NNODES": "4", "PET_NODE_RANK": "3", "PET_MASTER_ADDR": "job-0", "PET_MASTER_PORT": "29501", "PET_NPROC_PER_NODE": "1"}  # fmt: skip
TORCHRUN = {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "none"}  # fmt: skip


def spec(**changes: Any) -> dict[str, str]:
    return {"CLUSTER_SPEC": json.dumps(VERTEX | changes)}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Node()),
        (PLAIN, Node(2, 3, "10.0.0.1", 29400)),
        ({key: value for key, value in PLAIN.items() if key != "MASTER_PORT"}, Node(2, 3, "10.0.0.1", 29500)),
        ({"WORLD_SIZE": "1", "RANK": "0"}, Node()),
        (spec(), Node(2, 3, "p-0", 2222)),
        (spec(task={"type": "workerpool0", "index": 0}), Node(0, 3, "p-0", 2222)),
        (spec(task={"type": "workerpool0", "index": 0}, cluster={"workerpool0": ["p-0:2222"]}), Node(0, 1, "p-0", 2222)),
        (spec(task={"type": "workerpool1", "index": "0"}), Node(1, 3, "p-0", 2222)),
        (KUBEFLOW, Node(3, 4, "job-0", 29501)),
        (TORCHRUN, Node(1, 2, "h", 29501)),
        # The first set of variables that is set takes precedence.
        (spec() | KUBEFLOW | PLAIN, Node(2, 3, "p-0", 2222)),
        (KUBEFLOW | PLAIN | {"WORLD_SIZE": "8"}, Node(3, 4, "job-0", 29501)),
        (KUBEFLOW | TORCHRUN, Node(3, 4, "job-0", 29502)),
        ({"CLUSTER_SPEC": "", "PET_NNODES": ""} | PLAIN, Node(2, 3, "10.0.0.1", 29400)),
        # Nodes on one machine meet at its loopback interface; a single node needs no other.
        (PLAIN | {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}, Node(2, 3, "127.0.0.1", 29400)),
        ({"GLOO_SOCKET_IFNAME": "lo"}, Node()),
        (PLAIN | {"GLOO_SOCKET_IFNAME": "eth0"}, Node(2, 3, "10.0.0.1", 29400)),
    ],
)  # fmt: skip
def test_a_node_is_what_its_cluster_says(environ: dict[str, str], expected: Node) -> None:
    assert cluster_env.this_node(environ) == expected


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (PLAIN | {"RANK": "3"}, "node 3 of 3: ranks go from 0 to 2; give each node its own rank"),
        (PLAIN | {"RANK": "-1"}, "node -1 of 3: ranks go from 0 to 2"),
        (PLAIN | {"RANK": ""}, "WORLD_SIZE=3: RANK must say which node this is, from 0 to 2; set it on each node"),
        (PLAIN | {"MASTER_ADDR": ""}, "WORLD_SIZE=3: MASTER_ADDR must name node 0's host; set it on all nodes"),
        (PLAIN | {"WORLD_SIZE": "two"}, "WORLD_SIZE='two': expected a whole number; correct or unset it"),
        (PLAIN | {"WORLD_SIZE": "0", "RANK": "0"}, "node 0 of 0"),
        (KUBEFLOW | {"PET_NNODES": "1:4"}, "PET_NNODES='1:4': expected a whole number; correct or unset it"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "4"}, "LOCAL_WORLD_SIZE=4: start one process per node (torchrun --nproc-per-node=1)"),
        ({"CLUSTER_SPEC": "{"}, "CLUSTER_SPEC='{': not in Vertex AI's format"),
        ({"CLUSTER_SPEC": "[1]"}, "CLUSTER_SPEC='[1]': not in Vertex AI's format"),
        ({"GLOO_SOCKET_IFNAME": "lo,eth77"}, "GLOO_SOCKET_IFNAME=eth77: this machine has no such network interface; choose from lo"),
        (PLAIN | {"GLOO_SOCKET_IFNAME": "lo"}, "GLOO_SOCKET_IFNAME=lo: this is the loopback interface, which doesn't lead to 10.0.0.1; name the interface between the nodes, or unset the variable"),
        (spec() | {"NCCL_SOCKET_IFNAME": "lo0"}, "NCCL_SOCKET_IFNAME=lo0: this is the loopback interface"),  # macOS
        (spec() | {"NCCL_SOCKET_IFNAME": "lo"}, "NCCL_SOCKET_IFNAME=lo: this is the loopback interface"),
        (spec(cluster={}), "not in Vertex AI's format"),
        (spec(task={"type": "evaluator", "index": 0}), "not in Vertex AI's format"),
    ],
)  # fmt: skip
def test_invalid_values_are_refused(environ: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as error:
        cluster_env.this_node(environ)
    assert message in str(error.value)
