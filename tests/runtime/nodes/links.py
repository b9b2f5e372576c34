"""Control links over the loopback interface, with each node in its own thread."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from scaling_fl.runtime.nodes.cluster_env import Node
from scaling_fl.runtime.nodes.control_link import ControlLink
from tests.conftest import free_port


def run_nodes(count: int, act: Callable[[ControlLink], Any], ranks: list[int] | None = None) -> list["Future[Any]"]:
    """Run `act` with each node's link, one thread per node, started in the order of `ranks`; wait for all to end."""
    port, messages = free_port(), list[str]()

    def run_node(rank: int) -> Any:
        link = ControlLink(Node(rank, count, "127.0.0.1", port), messages.append)
        try:
            return act(link)
        finally:
            link.close()

    with ThreadPoolExecutor(count + 2) as pool:
        return [pool.submit(run_node, rank) for rank in ranks or range(count)]
