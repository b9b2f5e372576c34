"""TensorBoard's event file of a job, `tensorboard_dir/JOB/`: every metric by round, the configuration as text.

The file is a function of the job's events, and grows at its end alone, as TensorBoard's reader expects. Where a resume
discards rounds, a session start makes the reader discard them as well.
"""

import importlib.util
import io
import tempfile
from pathlib import Path
from typing import Any

from scaling_fl.checkpoint.storage import Storage
from scaling_fl.errors import UserError
from scaling_fl.progress import Event
from scaling_fl.tracking import events as event_file
from scaling_fl.tracking.record import Record

_FILE = "events.out.tfevents.0.scaling_fl"  # TensorBoard looks for `tfevents` in the name
_FILE_VERSION = "brain.Event:2"


class TensorBoardLog:
    """The event file in `folder`, local or a URL."""

    throttled = True

    def __init__(self, folder: str, job_name: str):
        self.name, self.title = f"TensorBoard in {folder}", "TensorBoard"
        self._storage = Storage(f"{folder.rstrip('/')}/{job_name}", "tensorboard_dir")
        self._written = io.BytesIO()
        self._opened = False

    def check(self) -> None:
        """Raises `UserError` if the package is missing, or the folder can't be written. Leaves no trace."""
        if not is_installed():
            raise UserError(
                "tensorboard_dir: the package tensorboard isn't installed; install it with ./run-local.sh --no-docker -m "
                "pip install tensorboard, or leave the key out"
            )
        if self._storage.local:
            event_file.check_writable(Path(self._storage.root), "choose another tensorboard_dir")
        else:
            self._storage.probe()

    def open(self, job_id: str) -> float:
        self._written, self._opened = io.BytesIO(), True
        return 0.0

    def write(self, record: Record, events: list[Event], path: Path) -> None:
        before = self._written.tell()
        if before == 0 and events:
            self._append({"wall_time": events[0]["time"], "file_version": _FILE_VERSION})
        for event in events:
            self._convert(event)
        if self._written.tell() > before:
            with tempfile.TemporaryDirectory() as work:
                file = Path(work) / _FILE
                file.write_bytes(self._written.getvalue())
                self._storage.fs.makedirs(self._storage.root, exist_ok=True)
                self._storage.publish_file(file, _FILE)

    def location(self) -> str:
        return self._storage.url if self._opened else ""

    def explain(self, error: Exception) -> str:
        return f"{type(error).__name__}: {error}"

    def _convert(self, event: Event) -> None:
        """Append what TensorBoard shows of an event."""
        from tensorboard.compat.proto import event_pb2

        at: dict[str, Any] = {"wall_time": event["time"]}
        match event["event"]:
            case "started":
                step = event["start"]["after_round"] + 1 if event["start"]["after_round"] else 0
                start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
                self._append(at | {"step": step, "session_log": start})
                self._append(at | {"step": step, "summary": _configuration(event["config"])})
            case "round" if values := {name: float(value) for name, value in event["metrics"].items()}:
                self._append(at | {"step": event["round"], "summary": _scalars(values)})
            case "checkpoint":
                seconds = {"seconds.checkpoint": event["seconds"]}
                self._append(at | {"step": event["round"], "summary": _scalars(seconds)})

    def _append(self, fields: dict[str, Any]) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        RecordWriter(self._written).write(event_pb2.Event(**fields).SerializeToString())


def is_installed() -> bool:
    return importlib.util.find_spec("tensorboard") is not None


def _scalars(values: dict[str, float]) -> Any:
    """Scalars by name. TensorBoard groups charts by what stands before the slash."""
    from tensorboard.compat.proto import summary_pb2

    scalars = [summary_pb2.Summary.Value(tag=name.replace(".", "/", 1), simple_value=v) for name, v in values.items()]
    return summary_pb2.Summary(value=scalars)


def _configuration(config: dict[str, Any]) -> Any:
    """The keys as a table in Markdown, for the page Text."""
    from tensorboard.compat.proto import summary_pb2, tensor_pb2, types_pb2

    rows = "\n".join(f"| {key} | {value} |" for key, value in config.items())
    text = tensor_pb2.TensorProto(
        dtype=types_pb2.DT_STRING, string_val=[f"| key | value |\n| --- | --- |\n{rows}".encode()]
    )
    plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
    metadata = summary_pb2.SummaryMetadata(plugin_data=plugin)
    return summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag="configuration", tensor=text, metadata=metadata)])
