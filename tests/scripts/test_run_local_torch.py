"""Where run-local.sh gets PyTorch from."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.scripts.executable import executable

# A `.venv/bin/python` whose pip only prints; PyTorch's own index can't be reached if FAIL is set.
FAKE_PIP = r"""
case "$*" in *" -m pip "*|"-m pip "*) ;; *) exit 0 ;; esac
echo "$*" >>"$ASKED"
case "$*" in *download.pytorch.org*) [ -z "$FAIL" ] || exit 1 ;; esac
echo "  Downloading https://x/torch-9.9.whl (204.0 MB)"
echo "Installing collected packages: torch, numpy"
"""
CPU = "https://download.pytorch.org/whl/cpu"
NO_DRIVER = pytest.mark.skipif(
    Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None, reason="there is an NVIDIA driver"
)


@pytest.mark.parametrize(
    ("environ", "dotenv", "driver", "index", "says"),
    [
        ({"TORCH_INDEX": "http://y"}, "", False, "http://y", "from TORCH_INDEX=http://y"),
        ({}, "TORCH_INDEX='http://z' # ours", False, "http://z", "from TORCH_INDEX=http://z"),
        ({}, "export TORCH_INDEX=http://w", False, "http://w", "from TORCH_INDEX=http://w"),
        ({}, "TORCH_INDEX=http://v\nTORCH_INDEX=http://w", False, "http://w", "from TORCH_INDEX=http://w"),
        ({"TORCH_INDEX": ""}, "TORCH_INDEX=http://z", False, None, "unpacking 2 packages"),
        ({}, "", True, None, "unpacking 2 packages"),
        pytest.param({}, "", False, CPU, "no NVIDIA driver: installing torch==9.9 without CUDA", marks=NO_DRIVER),
        pytest.param({"FAIL": "1"}, "", False, CPU, "pip's usual index serves it", marks=NO_DRIVER),
    ],
)
def test_pytorch_comes_from_torch_index_or_without_cuda_where_no_driver_is(
    tmp_path: Path, environ: dict[str, str], dotenv: str, driver: bool, index: str | None, says: str
) -> None:
    shutil.copy(ROOT / "run-local.sh", tmp_path)
    (tmp_path / "requirements.txt").write_text("torch==9.9  # a comment\n")
    (tmp_path / ".env").write_text(dotenv + "\n")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    executable(tmp_path / ".venv" / "bin", "python", FAKE_PIP)
    path = executable(tmp_path, "nvidia-smi", "exit 0") if driver else os.environ["PATH"]
    done = subprocess.run(
        [str(tmp_path / "run-local.sh"), "--no-docker", "-c", "0"], text=True, capture_output=True, check=True,
        env={"PATH": path, "ASKED": str(tmp_path / "asked"), **environ},
    )  # fmt: skip
    *first, last = (tmp_path / "asked").read_text().splitlines()
    assert last.endswith(f"-r {tmp_path}/requirements.txt")
    assert [line.split("--index-url ")[1] for line in first] == ([f"{index} torch==9.9"] if index else [])
    assert says in done.stderr
    assert "downloading torch-9.9.whl (204.0 MB)\n" in done.stderr


def test_another_torch_index_than_before_installs_pytorch_again(tmp_path: Path) -> None:
    shutil.copy(ROOT / "run-local.sh", tmp_path)
    (tmp_path / "requirements.txt").write_text("torch==9.9\n")
    (tmp_path / ".venv" / "lib" / "python3.11" / "site-packages" / "torch-9.9.dist-info").mkdir(parents=True)
    (tmp_path / ".venv" / "bin").mkdir()
    executable(tmp_path / ".venv" / "bin", "python", FAKE_PIP)

    def indexes(**environ: str) -> list[str]:
        asked = tmp_path / "asked"
        asked.write_text("")
        subprocess.run(
            [str(tmp_path / "run-local.sh"), "--no-docker", "-c", "0"], check=True, capture_output=True,
            env={"PATH": os.environ["PATH"], "ASKED": str(asked), **environ},
        )  # fmt: skip
        return [
            line.split("--index-url ")[1].split()[0] for line in asked.read_text().splitlines() if "--index-url" in line
        ]

    assert indexes() == []  # PyTorch is there
    assert indexes(TORCH_INDEX="http://cpu") == ["http://cpu"]
    assert indexes(TORCH_INDEX="http://cpu") == indexes() == []
    assert indexes(TORCH_INDEX="http://cuda") == ["http://cuda"]
