"""`docker compose --profile tracking up`: MongoDB and Omniboard on this machine, found by a job through its settings.

Where no registry is reached, stand-ins take their places: a MongoDB-wire server, and a page.
"""

import json
import os
import re
import signal
import subprocess
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pymongo
import pytest
import yaml

from tests.conftest import ROOT, free_port
from tests.containers.conftest import docker

pytestmark = [pytest.mark.containers, pytest.mark.timeout(2400), pytest.mark.usefixtures("no_container_is_left")]

SERVICES = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())["services"]
MONGO = {
    "Dockerfile": """
        FROM {image}
        USER 0
        RUN mkdir -p /data/db
        COPY mongosh /usr/local/bin/
        ENTRYPOINT []
        CMD ["nx-27017", "--host", "0.0.0.0", "--data-dir", "/data/db"]
    """,
    "mongosh": """#!/usr/bin/env python
import socket
socket.create_connection(("127.0.0.1", 27017), 5).close()
""",
}
OMNIBOARD = {
    "Dockerfile": """
        FROM {image}
        COPY node omniboard /usr/local/bin/
        ENTRYPOINT ["omniboard"]
    """,
    "node": """#!/usr/bin/env python
import urllib.request
urllib.request.urlopen("http://127.0.0.1:9000", timeout=5)
""",
    "omniboard": """#!/usr/bin/env python
import http.server, socket, sys

flag, address = sys.argv[1:]
host, port, database = address.split(":")
socket.create_connection((host, int(port)), 30).close()

class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{flag} {database}".encode())

http.server.HTTPServer(("", 9000), Page).serve_forever()
""",
}


@pytest.fixture
def stack(copy: Path, image: str, environ: dict[str, str], tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment for Compose, with an image for each service."""
    name = f"scaling_fl-test-{uuid.uuid4().hex[:8]}"
    variables = environ | {
        "COMPOSE_PROJECT_NAME": name, "SCALING_FL_MONGODB": name, "MONGODB_PORT": str(free_port()),
        "OMNIBOARD_PORT": str(free_port()),
    }  # fmt: skip
    compose = ["compose", "--profile", "tracking"]
    made = []
    for service, files in (("mongodb", MONGO), ("omniboard", OMNIBOARD)):
        get = "build" if "build" in SERVICES[service] else "pull"
        tag = SERVICES[service]["image"].replace("${SCALING_FL_IMAGE:-scaling_fl}", environ["SCALING_FL_IMAGE"])
        known = docker("image", "inspect", tag, check=False).returncode == 0
        if known or docker(*compose, get, service, check=False, cwd=copy, env=variables).returncode == 0:
            continue
        (tmp_path / service).mkdir()
        for file, content in files.items():
            (tmp_path / service / file).write_text(content.replace("{image}", image))
            (tmp_path / service / file).chmod(0o755)
        docker("build", "--tag", tag, str(tmp_path / service))
        made.append(tag)
    yield variables
    docker(*compose, "down", "--volumes", "--timeout", "0", cwd=copy, env=variables)
    for tag in made:
        docker("image", "rm", "--force", tag)


def test_a_job_is_recorded_where_the_profile_says(
    stack: dict[str, str], copy: Path, tmp_path: Path, folder: Path
) -> None:
    up = ["docker", "compose", "--profile", "tracking", "up"]
    with subprocess.Popen(
        up, cwd=copy, env=stack, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        assert running.stdout is not None
        lines = []
        for line in running.stdout:
            lines.append(line)
            if "for jobs, in .env:" in line:
                break
        assert "for jobs, in .env:" in lines[-1], "".join(lines)
        said = "".join(lines)
        settings = dict(re.findall(r"(\w+)=(\S+)", lines[-1]))
        assert settings.keys() == {"SACRED_HOST", "SACRED_DATABASE", "NETWORK_MODE"}
        found = re.search(r"Omniboard: (http://127\.0\.0\.1:\d+)", said)
        assert found is not None, said
        with urllib.request.urlopen(found[1], timeout=60) as page:
            assert page.status == 200
        containers = docker("ps", "-q", "--filter", f"label=com.docker.compose.project={stack['COMPOSE_PROJECT_NAME']}")
        inspected = json.loads(docker("inspect", *containers.stdout.split()).stdout)
        ports = [
            one
            for container in inspected
            for ones in container["NetworkSettings"]["Ports"].values()
            for one in ones or ()
        ]
        assert [one["HostIp"] for one in ports] == ["127.0.0.1"] * 2

        done = subprocess.run(
            [str(copy / "run-local.sh"), "scripts/train_federated.py", "with", "demo", "num_rounds=1",
             "max_train_examples=100", "max_test_examples=50", "job_name=j"],
            cwd=folder, env=stack | settings, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "MongoDB      run 1 in database sacred" in done.stdout
        client = pymongo.MongoClient(f"mongodb://{settings['SACRED_HOST']}", serverSelectionTimeoutMS=20000)
        (entry,) = client[settings["SACRED_DATABASE"]].runs.find()
        assert (entry["config"]["job_name"], entry["status"]) == ("j", "COMPLETED")
        client.close()
        assert running.poll() is None, "it runs until Ctrl-C"
        os.kill(running.pid, signal.SIGINT)
        running.communicate(timeout=120)
    docker("compose", "--profile", "tracking", "down", cwd=copy, env=stack)
    assert docker("volume", "inspect", stack["SCALING_FL_MONGODB"]).returncode == 0, "the records are kept"
