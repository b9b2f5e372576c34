"""The page of a finished job: drawn once, written beside the checkpoints, and attached to its records."""

import threading
from collections.abc import Callable, Mapping

from scaling_fl.checkpoint.store import CheckpointStore
from scaling_fl.config.schema import Config
from scaling_fl.tracking.record import Record

NAME = "report.html"


class JobPage:
    """Draws the page. A failure is a note, and never fails a job."""

    def __init__(self, config: Config, say: Callable[[str], None], reuse: bool = False):
        """`reuse`: take the page beside the checkpoints if there is one."""
        self.place = ""  # where it was written beside the checkpoints
        self._config, self._say, self._reuse = config, say, reuse
        self._content: bytes | None = None
        self._lock = threading.Lock()  # every target asks for it in its own thread

    def of(self, record: Record) -> dict[str, bytes]:
        """The page as an artifact of this complete record; nothing if report=False, or if drawing it failed."""
        wanted = self._config.report and record.config.get("report", False)
        with self._lock:
            if self._content is None:
                self._content = self._make(record) if wanted else b""
        return {NAME: self._content} if self._content else {}

    def location(self, records: Mapping[str, str]) -> str:
        """Where it can be opened, of a job with these records by title; empty if it wasn't made, or is in databases alone."""
        run = records.get("run record", "").partition(",")[0]
        return (self.place or (run and f"{run}/{NAME}")) if self._content else ""

    def _make(self, record: Record) -> bytes:
        content = b""
        try:
            folder = self._config.checkpoints_dir
            checkpoints = None if folder is None else CheckpointStore(folder)
            if self._reuse and checkpoints is not None and (stored := checkpoints.read(NAME)):
                return stored
            from scaling_fl.reporting import page  # takes a second to import

            content = page.render([record]).encode()
            if checkpoints is not None:
                checkpoints.write(NAME, content)
                self.place = checkpoints.url_of(NAME)
        except Exception as error:  # the job is complete, whatever a library raises here
            self._say(
                f"note: {NAME} can't be made ({type(error).__name__}: {error}); the job is complete, and "
                f"`scripts/report.py {self._config.job_name}` tries again"
            )
        return content
