"""What children find when they start."""

import contextlib
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scaling_fl.runtime import fork_server
from tests.conftest import ROOT

COMMAND = """
from scaling_fl.runtime import fork_server, launcher
fork_server.start(adapters={adapters})
target = "tests.runtime.test_fork_server:report"
launcher.run_children(target, [()], ["child"], "/none", lambda event: print(event["found"]))
"""


def report(send: Any) -> None:
    found = {"peft": "peft" in sys.modules, "worker": "scaling_fl.runtime.worker" in sys.modules}
    collector = {
        "frozen": gc.get_freeze_count() > 10_000,
        "collects": gc.isenabled(),
        "collected": gc.get_stats()[2]["collections"],
    }
    send({"event": "found", "found": json.dumps(found | collector)})


def test_peft_is_imported_without_bitsandbytes_which_would_start_cuda(tmp_path: Path) -> None:
    (tmp_path / "bitsandbytes").mkdir()
    (tmp_path / "bitsandbytes" / "__init__.py").write_text("import pathlib\npathlib.Path(__file__ + '.ran').touch()\n")
    script = (
        "import sys\nfrom scaling_fl.models import peft_alone\nassert 'peft' in sys.modules\n"
        "assert 'bitsandbytes' not in sys.modules\nimport pathlib, torch\n"
        "from peft import LoraConfig, inject_adapter_in_model\n"
        "inject_adapter_in_model(LoraConfig(target_modules=['0']), torch.nn.Sequential(torch.nn.Linear(2, 2)))\n"
        "ran = pathlib.Path(sys.argv[1])\nassert not ran.exists()\nimport bitsandbytes\nassert ran.exists()\n"
    )
    environ = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    ran = str(tmp_path / "bitsandbytes" / "__init__.py.ran")
    subprocess.run([sys.executable, "-c", script, ran], cwd=tmp_path, env=environ, check=True, timeout=600)


@pytest.mark.parametrize("adapters", [True, False])
def test_children_start_with_everything_imported(adapters: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMMAND.format(adapters=adapters)], cwd=ROOT, env=dict(os.environ), capture_output=True,
        text=True, timeout=600, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found.pop("collected") < 3, (
        "a collector that runs while torch and transformers are imported costs a quarter more"
    )
    assert found == {"peft": adapters, "worker": True, "frozen": True, "collects": True}, done.stderr


def test_the_main_module_is_hidden_while_children_start_alone() -> None:
    main = sys.modules["__main__"]
    seen = []
    with contextlib.suppress(OSError), fork_server.hidden_main():
        seen.append(sys.modules["__main__"])
        raise OSError("a child can't be started")
    assert sys.modules["__main__"] is main
    assert seen != [main]
