"""The launcher starts at once, because it never imports torch: it takes seconds and hundreds of megabytes."""

import subprocess
import sys
from pathlib import Path

from tests import builders
from tests.conftest import SCRIPT, clean_environment


def test_its_modules_do_not_import_torch() -> None:
    modules = "scaling_fl.runtime.launcher, scaling_fl.tracking.destinations, scaling_fl.tracking.tracker, scaling_fl.checkpoint.lease"
    code = f"import sys, scaling_fl.tracking.console, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_event_of_a_job_makes_it_import_torch(tmp_path: Path) -> None:
    words = [
        "with", "task_name=csv", f"train_path={builders.write_csv(tmp_path / 'train.csv', 20)}", "model=tiny",
        f"test_path={builders.write_csv(tmp_path / 't.csv', 9, 1)}", "text_column=body", "label_column=topic",
        "site_ids=[-1,-1]", "num_rounds=1", "max_seq_len=16",
    ]  # fmt: skip
    code = (
        "import atexit, runpy, sys\natexit.register(lambda: print({'torch', 'transformers'} & {*sys.modules}))\n"
        f"sys.argv = ['train_federated.py', *{words}]\nrunpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "set()"
    assert (tmp_path / "runs" / "1" / "report.html").exists()
