import inspect
import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from scaling_fl.config.schema import Config
from scaling_fl.errors import JobFailed, PeerLost, UserError
from scaling_fl.runtime import fork_server, launcher
from scaling_fl.runtime.nodes.cluster_env import Node
from scaling_fl.runtime.nodes.control_link import ControlLink
from tests import builders
from tests.conftest import free_port
from tests.tracking.builders import plan

Send = Callable[[dict[str, Any]], None]


def start(function: Callable[..., None], *jobs: tuple[Any, ...], folder: str = "/none") -> list[dict[str, Any]]:
    """Run a function of this module in one child per job; return the events."""
    events: list[dict[str, Any]] = []
    names = [f"child {number}" for number in range(len(jobs))]
    launcher.run_children(f"{__name__}:{function.__name__}", jobs, names, folder, events.append)
    return events


def print_a_lot(send: Send, number: int) -> None:
    send({"event": "hello", "number": number})
    print(f"text of {number}, ünï")
    sys.stderr.write(f"error of {number}\nbar 1/2\rbar 2/2\rdone {number}")
    os.write(1, b"\nfrom native code")


def test_events_and_output_of_every_child_arrive_without_progress_bar_frames() -> None:
    events = start(print_a_lot, (0,), (1,))
    assert sorted(e["number"] for e in events if e["event"] == "hello") == [0, 1]
    for number in (0, 1):
        lines = [e["text"] for e in events if e["event"] == "output" and e["source"] == f"child {number}"]
        expected = {f"text of {number}, ünï", f"error of {number}", f"done {number}", "from native code"}
        assert set(lines) == expected


def fail(send: Send, how: str) -> None:
    if how == "wait for a peer":
        while True:
            signal.pause()
    if how == "lose the peer":
        print("lost", flush=True)
        raise PeerLost("the connection to another worker broke")
    if how == "raise":
        raise ZeroDivisionError("site arithmetic")
    if how == "refuse":
        raise UserError("learning_rate=7: too high")
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), getattr(signal, how))


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("raise", JobFailed, r"child 1 failed:\nTraceback (.|\n)*ZeroDivisionError: site arithmetic$"),
        ("refuse", UserError, r"^learning_rate=7: too high$"),
        ("exit", JobFailed, r"child 1 ended: exit status 3, without a message"),
        ("SIGKILL", JobFailed, r"child 1 ended: killed by SIGKILL; .*out of memory"),
        ("SIGSEGV", JobFailed, r"child 1 ended: killed by SIGSEGV; native code crashed"),
        ("lose the peer", PeerLost, r"child 1: the connection to another worker broke"),
    ],
)
def test_the_first_failure_ends_all_children_and_is_raised(how: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        start(fail, ("wait for a peer",), (how,), ("wait for a peer",))


@pytest.mark.parametrize("cause", ["raise", "SIGKILL"])
def test_any_other_cause_takes_precedence_over_a_lost_connection(cause: str) -> None:
    with pytest.raises(JobFailed, match=r"child 2 (failed|ended)"):
        start(fail, ("lose the peer",), ("lose the peer",), (cause,))


def test_the_cause_on_another_node_takes_precedence_over_a_lost_connection_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Node 1's only child loses its connection and ends. Node 1 hasn't finished, and waits for the cause.

    It waits longer than for a cause of its own: node 0 must end its processes before it tells.
    """
    monkeypatch.setattr(launcher, "_CAUSE_GRACE", 0.0)
    ended, port = threading.Event(), free_port()

    def node_0() -> int:
        link = ControlLink(Node(0, 2, "127.0.0.1", port), print)
        (peer,) = link.peers
        link.begin_phase()
        assert ended.wait(240)
        deadline = time.monotonic() + 1
        while not peer.done and time.monotonic() < deadline:
            peer.receive(pytest.fail)
        link.announce_end(JobFailed("a bug"))
        link.close()
        return peer.done

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "output":
            ended.set()

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(node_0)
        link = ControlLink(Node(1, 2, "127.0.0.1", port), print)
        with pytest.raises(JobFailed, match=r"^on node 0 \(.*\): a bug$"):
            launcher.run_children(f"{__name__}:fail", [("lose the peer",)], ["child"], "/none", on_event, link=link)
        link.close()
        assert done.result(240) == 0


def report_pid(send: Send, number: int) -> None:
    send({"event": "pid", "pid": os.getpid()})
    while True:
        signal.pause()


def orphan(send: Send, folder: str) -> None:
    """Run a launcher in a child: it starts two children, reports their pids, and kills itself."""

    def on_event(event: dict[str, Any]) -> None:
        send(event)
        seen.append(event)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    seen: list[Any] = []
    import multiprocessing

    process_config = multiprocessing.process.current_process()._config  # type: ignore[attr-defined]
    process_config |= {"daemon": False, "tempdir": tempfile.mkdtemp(dir=Path(folder).parent, prefix="pymp-")}
    multiprocessing.forkserver._forkserver = (
        multiprocessing.forkserver.ForkServer()
    )  # a new one, which must end with this process
    launcher.run_children(f"{__name__}:report_pid", [(0,), (1,)], ["a", "b"], folder, on_event)


def test_children_die_with_their_launcher_and_remove_the_work_folder(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    events: list[dict[str, Any]] = []
    with pytest.raises(JobFailed, match="killed by SIGKILL"):
        launcher.run_children(f"{__name__}:orphan", [(str(work),)], ["launcher"], "/none", events.append)
    pids = [event["pid"] for event in events if event["event"] == "pid"]
    assert len(pids) == 2
    builders.wait_for_end(pids)
    assert list(tmp_path.iterdir()) == [], "the work folder and the fork server's folder are removed"


def refuse_and_clean_up(send: Send, marker: str) -> None:
    multiprocessing.util.Finalize(None, lambda: (time.sleep(0.3), Path(marker).touch()), exitpriority=1)
    raise UserError("no")


def test_a_child_that_refuses_may_clean_up(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no"):
        start(refuse_and_clean_up, (str(tmp_path / "cleaned up"),))
    assert (tmp_path / "cleaned up").exists()


def test_a_temporary_folder_too_long_for_a_socket_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def ensure_running() -> None:
        raise OSError("AF_UNIX path too long")

    monkeypatch.setattr(multiprocessing.forkserver, "ensure_running", ensure_running)
    fork_server.start()  # an early start ignores the error; starting a child reports it
    with pytest.raises(
        UserError, match=r"TMPDIR=/.*: can't create a socket there \(AF_UNIX path too long\); choose another"
    ):
        start(print_a_lot, (0,))


@pytest.mark.parametrize(
    ("mine", "spins"),
    [
        ({}, "10000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active", "PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, None),
    ],
)
def test_variables_of_libraries_that_the_user_has_set_are_kept(
    monkeypatch: pytest.MonkeyPatch, mine: dict[str, str], spins: str | None
) -> None:
    """OMP_WAIT_POLICY also says how long threads spin, and GOMP_SPINCOUNT would take precedence over it."""
    for name in (*fork_server.LIBRARY_ENVIRONMENT, "OMP_WAIT_POLICY", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (mine | {"TORCH_CPP_LOG_LEVEL": "INFO"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(multiprocessing.forkserver, "ensure_running", lambda: None)
    fork_server.start()
    found = {name: os.environ.get(name) for name in fork_server.LIBRARY_ENVIRONMENT}
    expected = fork_server.LIBRARY_ENVIRONMENT | {"GOMP_SPINCOUNT": spins, "TORCH_CPP_LOG_LEVEL": "INFO"}
    assert found == expected | ({"PYTORCH_ALLOC_CONF": None} if "PYTORCH_CUDA_ALLOC_CONF" in mine else {})


def test_what_gpus_need_is_set_for_all_children() -> None:
    needed = {
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    }  # fmt: skip
    assert needed.items() <= fork_server.LIBRARY_ENVIRONMENT.items()


def test_a_child_that_cannot_be_killed_does_not_hold_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that hangs in a driver neither ends nor runs; here, one is suspended instead of killed."""
    events: list[dict[str, Any]] = []
    stuck: list[Any] = []
    kill = launcher.Child.kill

    def fail_to_kill(child: launcher.Child) -> None:
        if child.name != "stuck":
            kill(child)
            return
        stuck.append(child.process)
        os.kill(child.process.pid, signal.SIGSTOP)

    monkeypatch.setattr(launcher, "_END_GRACE", 0.5)
    monkeypatch.setattr(launcher.Child, "kill", fail_to_kill)
    try:
        with pytest.raises(JobFailed, match="site arithmetic"):
            launcher.run_children(
                f"{__name__}:fail", [("wait for a peer",), ("raise",)], ["stuck", "other"], "/none", events.append
            )
        (said,) = [event["text"] for event in events if event["event"] == "said"]
        assert said.startswith(f"stuck (process {stuck[0].pid}) still runs 0 s after it was killed: it hangs")
        assert stuck[0] not in multiprocessing.active_children(), "Python's end would wait for it"
    finally:
        stuck[0].kill()


def test_a_preparation_that_hangs_is_noticed_and_nodes_may_all_wait_for_the_hub(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signature, given = inspect.signature(launcher.run_children), dict[str, Any]()

    def run_children(*arguments: Any, **more: Any) -> None:
        given.update(signature.bind(*arguments, **more).arguments)
        given["on_event"]({"event": "prepared", "plan": plan()})

    monkeypatch.setattr(launcher, "run_children", run_children)
    assert launcher.prepare(Config(stall_timeout=77.0), "/none", pytest.fail) == plan()
    assert (given["stall_timeout"], given["all_may_block"]) == (77.0, True)


def report_temporary_folder(send: Send) -> None:
    send({"event": "folder", "folder": tempfile.gettempdir()})


def test_temporary_files_of_children_are_in_the_work_folder(tmp_path: Path) -> None:
    """It is removed with the job, also if a child is killed. Where there is none, they are where all others are."""
    (tmp_path / "work").mkdir()
    found = [start(report_temporary_folder, (), folder=folder) for folder in (str(tmp_path / "work"), "/none")]
    assert [event["folder"] for (event,) in found] == [str(tmp_path / "work"), tempfile.gettempdir()]
