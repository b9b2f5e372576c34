"""docker-compose.yaml: what `docker compose --profile tracking up` starts. tests/containers starts it."""

import re
from typing import Any

import yaml

from scaling_fl.tracking import mongo_address
from tests.conftest import ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
TRACKING = {name: service for name, service in COMPOSE["services"].items() if service["profiles"] == ["tracking"]}


def default(text: str) -> str:
    """`text` with the default of each variable."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def test_the_profile_starts_mongodb_and_omniboard_but_no_job() -> None:
    assert TRACKING.keys() == {"mongodb", "omniboard", "where"}
    assert COMPOSE["services"]["main"]["profiles"] == ["job"]


def test_versions_are_pinned() -> None:
    tests = (ROOT / "tests" / "tracking" / "omniboard.py").read_text()
    images = [service["image"] for service in TRACKING.values()]
    build = TRACKING["omniboard"]["build"]
    recipe = (ROOT / build["context"] / build["dockerfile"]).read_text()
    (base,) = re.findall(r"^FROM (.*)$", recipe, re.MULTILINE)
    assert all(re.search(r":\d+\.\d+\.\d+", name) for name in [*images, base])
    (version,) = re.findall(r"omniboard@([\d.]+)", recipe)
    assert f'VERSION = "{version}"' in tests, "the version that the tests run"
    assert TRACKING["omniboard"]["image"].endswith(f":{version}")


def test_only_this_machine_reaches_the_ports() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", ())]
    assert len(ports) == 2
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_omniboard_waits_for_mongodb_and_the_records_outlive_the_containers() -> None:
    assert all("healthcheck" in TRACKING[name] for name in ("mongodb", "omniboard"))
    assert TRACKING["omniboard"]["depends_on"] == {"mongodb": {"condition": "service_healthy"}}
    assert TRACKING["where"]["depends_on"] == {"omniboard": {"condition": "service_healthy"}}
    (mount,) = TRACKING["mongodb"]["volumes"]
    assert mount == "mongodb:/data/db"
    assert default(COMPOSE["volumes"]["mongodb"]["name"]) == "scaling_fl-mongodb"


def test_the_settings_that_it_prints_are_those_of_the_template_and_lead_to_its_mongodb() -> None:
    omniboard, for_jobs = map(default, TRACKING["where"]["command"])
    settings = dict(re.findall(r"(\w+)=(\S+)", for_jobs))
    template = (ROOT / ".env.template").read_text()
    page = (ROOT / "docs" / "tracking.md").read_text()
    assert all(f"{name}={value}" in template for name, value in settings.items())
    assert f"| {omniboard}\n" in page
    assert f"| {for_jobs}\n" in page
    host, port = settings["SACRED_HOST"].split(":")
    assert [default(port) for port in TRACKING["mongodb"]["ports"]] == [f"{host}:{port}:27017"]
    assert settings["NETWORK_MODE"] == "host", "a published port of 127.0.0.1 can't be reached from a bridge"
    address = mongo_address.from_environment(settings)
    assert address is not None
    assert default(TRACKING["omniboard"]["command"][1]) == f"mongodb:27017:{address.database}"
