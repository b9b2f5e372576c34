"""The control link between the launchers of several nodes: rendezvous, exchange of values, heartbeats, failures.

Each launcher has one connection to node 0. Both ends send JSON lines, including a heartbeat every 2 s.
"""

import contextlib
import fcntl
import json
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

from scaling_fl.errors import NodeLost, OutOfMemory, UserError
from scaling_fl.runtime import signals
from scaling_fl.runtime.nodes.cluster_env import Node
from scaling_fl.runtime.nodes.peer import Peer

_HEARTBEAT_INTERVAL = 2.0  # seconds
_RENDEZVOUS_TIMEOUT = 1800.0  # seconds: clusters start nodes one after another

Say = Callable[[str], None]


class ControlLink:
    """Connections from node 0 to all other nodes, or from another node to node 0; none for a single node."""

    def __init__(self, node: Node, say: Say):
        """Wait until all nodes are connected. Raises `UserError` if they can't be."""
        self.node, self.peers, self.addresses = node, list[Peer](), [""]
        self._closed = threading.Event()
        self.blocked = False  # whether all of this node's workers are blocked
        if node.count > 1:
            self.addresses = self._accept_nodes(say) if node.rank == 0 else self._connect(say)
            threading.Thread(target=self._send_heartbeats, daemon=True).start()

    def _accept_nodes(self, say: Say) -> list[str]:
        node, deadline = self.node, time.monotonic() + _RENDEZVOUS_TIMEOUT
        try:
            server = socket.create_server(("", node.port), reuse_port=False)
        except OSError as error:
            raise UserError(
                f"MASTER_PORT={node.port}: node 0 can't listen on this port ({error}); choose another one"
            ) from error
        found: dict[int, tuple[Peer, str]] = {}
        own = ""
        with server:
            server.settimeout(1.0)
            said = 0.0
            while True:
                found = {
                    rank: entry for rank, entry in found.items() if not entry[0].is_disconnected()
                }  # a lost node may reconnect
                missing = [str(rank) for rank in range(1, node.count) if rank not in found]
                if not missing:
                    break
                if time.monotonic() - said > 30:
                    said = time.monotonic()
                    say(f"node 0 of {node.count} is waiting on port {node.port} for {_node_names(missing)}")
                if time.monotonic() > deadline:
                    for peer, _ in found.values():
                        refusal = f"{_node_names(missing)} of {node.count} didn't connect; check that the command is running there"
                        peer.send("refused", [0, refusal])
                    raise UserError(
                        f"{_node_names(missing)} of {node.count} didn't connect within {_RENDEZVOUS_TIMEOUT / 60:.0f} "
                        "minutes; check that the command is running there, with the same MASTER_ADDR, MASTER_PORT and WORLD_SIZE"
                    )
                signals.check()
                try:
                    connection, (host, *_) = server.accept()
                except TimeoutError:
                    continue
                rank, refusal = self._check_handshake(connection, found)
                if rank is None:  # not a launcher
                    connection.close()
                    continue
                peer = Peer(connection, f"node {rank} ({host})")
                if refusal:
                    say(f"note: refused a node at {host}: {refusal}")
                    peer.send("refused", [0, refusal])
                    peer.end()
                else:
                    found[rank] = peer, host
                    own = connection.getsockname()[0]
        self.peers = [found[rank][0] for rank in sorted(found)]
        for peer in self.peers:
            peer.progress_at = time.monotonic()
            peer.send("value", "welcome")
        return [own, *(found[rank][1] for rank in sorted(found))]

    def _check_handshake(self, connection: socket.socket, found: dict[int, tuple[Peer, str]]) -> tuple[int | None, str]:
        """The rank that a connecting launcher claims, None if it isn't one; and the reason for a refusal, if any."""
        connection.settimeout(5.0)
        try:
            kind, rank, count = json.loads(connection.makefile("rb").readline(200))
        except (OSError, ValueError, TypeError):
            return None, ""
        if kind != "scaling_fl" or type(rank) is not int:
            return None, ""
        if count != self.node.count:
            return rank, f"WORLD_SIZE={count} there, but {self.node.count} on node 0; use the same value on every node"
        if not 1 <= rank < self.node.count:
            return (
                rank,
                f"RANK={rank}: expected 1 to {self.node.count - 1}, because node 0 is listening; give each node its "
                "own rank",
            )
        if rank in found and not found[rank][0].is_disconnected():
            return rank, f"RANK={rank}: already taken by the node at {found[rank][1]}; give each node its own rank"
        return rank, ""

    def _connect(self, say: Say) -> list[str]:
        node, deadline, said = self.node, time.monotonic() + _RENDEZVOUS_TIMEOUT, 0.0
        where = f"node 0 at {node.address}:{node.port}"
        while True:
            signals.check()
            try:
                connection = socket.create_connection((node.address, node.port), timeout=5)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"{where} doesn't answer ({error}); check that the command is running there, and that "
                        "MASTER_ADDR and MASTER_PORT are node 0's"
                    ) from error
                if time.monotonic() - said > 30:
                    said = time.monotonic()
                    say(f"node {node.rank} of {node.count} is waiting for {where}")
                time.sleep(0.5)
        connection.sendall(json.dumps(["scaling_fl", node.rank, node.count]).encode() + b"\n")
        self.peers = [Peer(connection, f"node 0 ({connection.getpeername()[0]})")]
        self._wait_for_values(deadline)
        return [connection.getpeername()[0]]

    def _send_heartbeats(self) -> None:
        while not self._closed.wait(_HEARTBEAT_INTERVAL):
            for peer in self.peers:
                peer.send("alive", self.blocked)

    def interface(self) -> str | None:
        """The network interface that leads to the other nodes; None if the system doesn't say."""
        own = self.addresses[0] if self.node.rank == 0 else self.peers[0].sources()[0].getsockname()[0]
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            for _, name in socket.if_nameindex():
                with contextlib.suppress(OSError):  # it has no IPv4 address
                    answer = fcntl.ioctl(probe.fileno(), 0x8915, struct.pack("256s", name.encode()[:15]))  # SIOCGIFADDR
                    if socket.inet_ntoa(answer[20:24]) == own.removeprefix("::ffff:"):
                        return name
        return None

    def all_gather(self, value: Any) -> list[Any]:
        """The values (plain JSON) of all nodes, by rank, on every node. Raises the failure of another node."""
        if self.node.count == 1:
            return [value]
        if self.node.rank > 0:
            self.peers[0].send("value", value)
            (everything,) = self._wait_for_values()
            return list(everything)
        everything = [value, *self._wait_for_values()]
        for peer in self.peers:
            peer.send("value", everything)
        return everything

    def _wait_for_values(self, deadline: float = float("inf")) -> list[Any]:
        """The next value of each peer."""
        while not all(peer.values for peer in self.peers):
            signals.check()
            if time.monotonic() > deadline:
                raise UserError(
                    f"{self.peers[0].name} didn't accept this node within {_RENDEZVOUS_TIMEOUT / 60:.0f} minutes; "
                    "check that the command is running on every node"
                )
            select.select([source for peer in self.peers for source in peer.sources()], [], [], 1.0)
            for peer in self.peers:
                peer.receive(lambda event: None)
                if not peer.values and (peer.failure or (peer.is_hung(0) and deadline == float("inf"))):
                    raise peer.failure or peer.hang_failure(0, lambda event: None)
        return [peer.values.pop(0) for peer in self.peers]

    def begin_phase(self) -> None:
        """Begin a phase, which ends when all nodes have finished their part."""
        for peer in self.peers:
            peer.phase += 1

    def restart(self) -> None:
        """Begin another attempt, after a failure that all nodes know of.

        A value that has arrived belongs to it: a node that restarted first may have sent it together with the failure.
        """
        for peer in self.peers:
            peer.attempt += 1
            if not isinstance(peer.failure, NodeLost):
                peer.failure = None

    def finish_phase(self) -> None:
        """Tell the other nodes that this node has finished its part of the phase."""
        for peer in self.peers:
            peer.send("done", peer.phase)

    @property
    def grace(self) -> float:
        """Extra seconds that this node waits for node 0 to stop the job."""
        return 5.0 if self.node.rank > 0 else 0.0

    def request_stop(self) -> bool:
        """Ask node 0 to stop the job. Returns False on node 0 itself."""
        if self.node.rank > 0:
            self.peers[0].send("stop", signals.received())
        return self.node.rank > 0

    def announce_end(self, error: BaseException) -> None:
        """Tell the other nodes why this node ends. A failure that came from a node is passed on unchanged."""
        for peer in self.peers:
            if isinstance(error, KeyboardInterrupt):
                peer.send("stopped", signals.received())
            else:
                heard = any(error is other.failure for other in self.peers)
                said = str(error) if heard else f"on node {self.node.rank} ({socket.gethostname()}): {error}"
                kinds = {UserError: "refused", OutOfMemory: "exhausted"}
                kind = next((kind for of_kind, kind in kinds.items() if isinstance(error, of_kind)), "failed")
                peer.send(kind, [peer.attempt, said])

    def close(self) -> None:
        """Close all connections."""
        self._closed.set()
        for peer in self.peers:
            peer.end()


def _node_names(ranks: list[str]) -> str:
    return f"node{'s' * (len(ranks) > 1)} {', '.join(ranks)}"


SINGLE_NODE = ControlLink(Node(), print)
