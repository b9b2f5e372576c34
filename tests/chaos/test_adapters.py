"""Jobs that train adapters are killed in mid-round, and resume with all that the sites keep."""

import re
import signal
from pathlib import Path

import pytest

from tests import builders
from tests.chaos.job import Job, job
from tests.chaos.leftovers import left_behind, processes_in

pytestmark = pytest.mark.chaos

LORA = ["trainable=lora", "lora_rank=2", "lora_dropout=0.1", "num_sites=7", "sites_per_round=4"]
DOCUMENTS = ["task_name=lm", "partition=iid"]


def published(of: Job) -> dict[str, bytes]:
    """The files of the model, without its card, which has times."""
    files = (path for path in (of.folder / "out" / "model").rglob("*") if path.is_file() and path.name != "README.md")
    return {str(path.relative_to(of.folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("place", "kind", "keys"),
    [
        ("training", "kill", ["lora_aggregation=share_a"]),
        pytest.param(
            "aggregation", "launcher SIGKILL", ["keep_optimiser=True", *DOCUMENTS], marks=pytest.mark.thorough
        ),
        pytest.param("aggregation", "kill", ["lora_aggregation=exact", *DOCUMENTS], marks=pytest.mark.thorough),
        pytest.param("training", "kill", ["lora_aggregation=share_a", *DOCUMENTS], marks=pytest.mark.thorough),
        pytest.param("training", "kill", ["lora_aggregation=stack", *DOCUMENTS], marks=pytest.mark.thorough),
        pytest.param("training", "launcher SIGKILL", ["personal=classifier"], marks=pytest.mark.thorough),
    ],
)
def test_a_killed_job_with_adapters_resumes_bitwise(tmp_path: Path, place: str, kind: str, keys: list[str]) -> None:
    """Four of seven sites train in a round. The others' own matrices and moments must outlive it, too."""
    whole, killed = job(tmp_path / "whole", ""), job(tmp_path / "killed", "")
    if "task_name=lm" in keys:
        keys = [*keys, f"model={builders.pretrained(tmp_path / 'llama', 'llama')}"]
    done = whole.run(None, *LORA, *keys)
    assert done.returncode == 0, done.stderr
    kept = {name.partition(".")[0] for name in whole.state() if name.startswith("site_")}
    shared = {"lora_aggregation=exact", "lora_aggregation=stack"} & {*keys}
    assert len(kept) > 4 or shared, "some sites that don't train in the last round keep something"

    fault = {"place": place, "kind": kind, "worker": 1, "round": 3, "marker": str(tmp_path / "marker")}
    struck = killed.run(fault, *LORA, *keys)
    assert struck.returncode == (1 if kind == "kill" else -signal.SIGKILL), struck.stderr
    assert (tmp_path / "marker").exists(), "the fault never struck"
    builders.wait_for_end(processes_in(tmp_path / "killed"))
    resumed = killed.run(None, *LORA, *keys, "site_ids=[-1,-1]")
    assert resumed.returncode == 0, resumed.stderr
    assert re.search(r"job news resumes after round [12]\b", resumed.stdout)
    assert killed.state() == whole.state()
    assert killed.record() == whole.record()
    assert published(killed) == published(whole)
    assert left_behind(killed.folder) == []
