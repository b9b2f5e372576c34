"""Passwords for MongoDB: in no file of a job, no output and no entry."""

from pathlib import Path

import pytest

from tests.chaos.conftest import Server
from tests.chaos.job import Job, job, synced

pytestmark = pytest.mark.chaos
SECRET = "s3cr/et@pass"
ESCAPED = SECRET.replace("/", "%2F").replace("@", "%40")


def test_secrets_are_never_written_or_shown(server: Server, tmp_path: Path) -> None:
    server.start()
    # This server rejects the default authentication mechanism, and accepts any password in plain text.
    plain = f"mongodb://me:{ESCAPED}@{server.address}/lab?authMechanism=PLAIN&authSource=admin"
    url = f"mongodb://{server.address}/lab?appName={ESCAPED}"
    for environ in (
        {"SACRED_HOST": server.address, "SACRED_DATABASE": "lab", "SACRED_USER": "me", "SACRED_PASSWORD": SECRET},
        {"SACRED_MONGO_URL": plain},
        {"SACRED_MONGO_URL": url},
    ):
        tracked = job(tmp_path / f"job{len(list(tmp_path.iterdir()))}", "")
        tracked = Job([*tracked.words, f"job_name={tracked.folder.name}"], tracked.folder, environ)
        done = tracked.run()
        assert done.returncode == 0, done.stderr
        files = [path for path in tracked.folder.rglob("*") if path.is_file()]
        assert len(files) > 10
        for secret in (SECRET, ESCAPED):
            assert secret not in done.stdout + done.stderr
            for path in files:
                assert secret.encode() not in path.read_bytes(), path
        if "brings it up to date" in done.stdout and "SACRED_USER" not in environ:
            synced(tracked)
    assert server.database("lab").runs.count_documents({"status": "COMPLETED"}) == 2
    # Without the server's log, which contains every message that it receives.
    stored = [path.read_bytes() for path in (tmp_path / "server" / "mongo").rglob("*") if path.is_file()]
    assert any(tracked.folder.name.encode() in content for content in stored)
    for content in stored:
        assert SECRET.encode() not in content
        assert ESCAPED.encode() not in content
