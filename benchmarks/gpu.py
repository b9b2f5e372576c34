#!/usr/bin/env python
"""One GPU: local training against the Hugging Face Trainer, and 1 to 16 sites that share the GPU. Needs no network.

    ./run-local.sh benchmarks/gpu.py --part training
    ./run-local.sh benchmarks/gpu.py --part sites

The models are BERT-base and DistilBERT with random weights, trained with AdamW on texts of 8 to 128 tokens, in bf16 if the
GPU supports it. Model FLOPs are 6 × (parameters outside the embeddings) × (tokens without padding), compared with the rate
of large matrix products in the same precision. Aggregation needs N reads and 1 write; a copy is 1 read and 1 write. Sites
are measured with NVIDIA's Multi-Process Service as well, where it can be started. LoRA sites run the real command on a decoder
of SmolLM2-135M's shape. Rows are printed as they come; a part that
fails is named, and the others go on.
"""

import argparse
import contextlib
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gpu_lora
import measure
import torch
from gpu_training import DEVICE, SHAPES

# Each in its own process, which frees the memory.
OURS = (
    "import sys, json, gpu_training as gpu; "
    "print(json.dumps(gpu.ours(sys.argv[1], *map(int, sys.argv[2:4]), sys.argv[4], sys.argv[5] == 'True')))"
)
LIMITS = "import sys, json, gpu; print(json.dumps(gpu.limits(sys.argv[1])))"
TRAINER = (
    "import sys, json, gpu_training as gpu; "
    "print(json.dumps(gpu.trainer(sys.argv[1], *map(int, sys.argv[2:4]), sys.argv[4], sys.argv[5])))"
)
SITES = (
    "import sys, json, gpu_sites as gpu; "
    "print(json.dumps(gpu.colocated(int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:5]), sys.argv[5] == 'True')))"
)
BATCHES = {"BERT-base": (32, 256), "DistilBERT": (32,)}  # texts per step
SITE_BATCH = 32
Row = tuple[str, str, str, str, str]


def limits(precision: str) -> tuple[float, float]:
    """FLOP/s of matrix products, and bytes per second read and written by a copy."""
    a, b = (torch.randn(8192, 8192, device=DEVICE, dtype=getattr(torch, precision)) for _ in range(2))
    source = torch.ones(2**28, device=DEVICE)
    target = torch.empty_like(source)

    def seconds(function: Any) -> float:
        function()
        torch.cuda.synchronize()
        return statistics.median(measure.timed(lambda: (function(), torch.cuda.synchronize())) for _ in range(9))

    return 2 * 8192**3 / seconds(lambda: a @ b), 2 * 4 * 2**28 / seconds(lambda: target.copy_(source))


def training(
    shape: str, batch: int, options: argparse.Namespace, precision: str, rate: float, here: dict[str, str]
) -> Iterator[Row]:
    """One site against the Trainer with the same batch size, and against matrix products."""
    python, samplings = trainer()
    count = options.texts // batch
    arguments = (shape, count, batch, precision)
    runs: dict[str, Callable[[], Any]] = {
        "scaling_fl": lambda: measure.script(sys.executable, OURS, *arguments, False, **here),
        "deterministic": lambda: measure.script(sys.executable, OURS, *arguments, True, **here),
    }
    for name in samplings:
        runs[name] = lambda name=name: measure.script(python, TRAINER, *arguments, name, **here)  # type: ignore[misc]
    results = measure.in_turn({name: (lambda run=run: attempt(run)) for name, run in runs.items()}, options.repeats)
    results = {name: rows for name, rows in results.items() if None not in rows}
    if "scaling_fl" not in results:
        raise RuntimeError("no figures of scaling_fl")
    samplings = {name: title for name, title in samplings.items() if name in results}
    speed = {name: statistics.median(row[0] for row in rows) for name, rows in results.items()}
    used = {name: statistics.median(row[1] for row in rows) for name, rows in results.items()}
    what, mine = f"{shape}, {batch} texts a step, {precision}", f"{speed['scaling_fl']:.0f}/s"
    for peer, name in samplings.items():
        bar = "≥ 1.5" if peer == "group_by_length" else ""
        yield f"{what}, against {name}", mine, f"{speed[peer]:.0f}/s", f"{speed['scaling_fl'] / speed[peer]:.2f}", bar
    if "deterministic" in speed:
        ratio = f"{speed['deterministic'] / speed['scaling_fl']:.2f}"
        yield f"{what}, deterministic=True against the default", f"{speed['deterministic']:.0f}/s", mine, ratio, ""
    theirs = ", ".join(f"{used[name] / rate:.2f}" for name in samplings)
    share = f"{used['scaling_fl'] / rate:.2f}" + f" (Trainer {theirs})" * bool(theirs)
    bar = {("BERT-base", 32): "≥ 0.25", ("BERT-base", 256): "≥ 0.45"}.get((shape, batch), "")
    flops = f"{used['scaling_fl'] / 1e12:.0f} TFLOP/s"
    yield f"{what}, against the GPU's matrix products", flops, f"{rate / 1e12:.0f} TFLOP/s", share, bar


def attempt(run: Callable[[], Any]) -> Any:
    """What the run yields, or None if its process fails, which takes nothing from the others."""
    try:
        return run()
    except SystemExit as error:  # `measure.script` exits
        print(error, flush=True)
        return None


def trainer() -> tuple[str, dict[str, str]]:
    """A Python that has the Trainer, and the orders of texts to measure; none if it can't be had."""
    samplings = {"random": "the Trainer's default", "group_by_length": "its `group_by_length`"}
    if importlib.util.find_spec("accelerate") is not None:  # the Trainer needs it
        return sys.executable, samplings
    try:
        return measure.peer("trainer", "transformers==5.23.0", "accelerate==1.15.0", "fsspec", "numpy"), samplings
    except subprocess.CalledProcessError:
        print("note: accelerate is neither installed nor installable: the Trainer is left out", flush=True)
        return sys.executable, {}


def sites(
    number: int, texts: int, precision: str, bandwidth: float, here: dict[str, str], how: str, alone: dict[str, float]
) -> Iterator[Row]:
    """Several sites that share the GPU: their training and memory, and aggregation as a share of memory bandwidth.

    `alone` holds the seconds of training with one site, by `how`, once they are known.
    """
    for exact in (True, False) if not how else (True,):
        found = measure.script(sys.executable, SITES, number, precision, texts, SITE_BATCH, exact, **here)
        what = f"{number} DistilBERT sites on the GPU, {found['through']}{how}"
        if exact:
            if number == 1:
                alone[how] = found["train"]
            against = alone.get(how)
            yield (
                f"{what}: training, against one site", f"{texts / found['train']:.0f}/s, {found['memory'] / 2**30:.1f} GiB",
                f"{texts / against:.0f}/s" if against else "", f"{against / found['train']:.2f}" if against else "",
                "≥ 0.9" if number == 8 and against else "",
            )  # fmt: skip
        moved = (number + 1) * found["bytes"] / found["aggregate"]
        milliseconds, share = f"{1e3 * found['aggregate']:.1f} ms, {moved / 1e9:.0f} GB/s", f"{moved / bandwidth:.2f}"
        kind, bar = ("fixed point", "") if exact else ("floats", "≥ 0.5")
        yield f"{what}: aggregation in {kind}", milliseconds, f"{bandwidth / 1e9:.0f} GB/s", share, bar


@contextlib.contextmanager
def multi_process_service() -> Iterator[dict[str, str] | None]:
    """Run NVIDIA's Multi-Process Service with a folder of its own; yields its variables, or None where it can't start."""
    with tempfile.TemporaryDirectory(prefix="mps-") as folder:
        variables = {"CUDA_MPS_PIPE_DIRECTORY": f"{folder}/pipe", "CUDA_MPS_LOG_DIRECTORY": f"{folder}/log"}
        control, environ = "nvidia-cuda-mps-control", os.environ | variables
        try:
            subprocess.run(
                [control, "-d"],
                env=environ,
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=30,
            )
        except (OSError, subprocess.SubprocessError) as error:
            print(f"note: without the Multi-Process Service: {error}", flush=True)
            yield None
            return
        try:
            yield variables
        finally:
            subprocess.run([control], input="quit\n", text=True, env=environ, check=False, timeout=60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["training", "sites", "all"], default="all")
    parser.add_argument("--texts", type=int, default=4800)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--sites", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this machine has no GPU that torch can use")
    measure.wait_until_quiet(minutes=1)
    precision = "bf16" if torch.cuda.get_device_capability(DEVICE) >= (8, 0) else "fp32"
    # Show one GPU only: the Trainer would use all of them.
    one = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    here = {"PYTHONPATH": f"{measure.ROOT}:{Path(__file__).parent}", "CUDA_VISIBLE_DEVICES": one}
    rate, bandwidth = measure.script(sys.executable, LIMITS, {"bf16": "bfloat16", "fp32": "float32"}[precision], **here)
    print(
        f"{torch.cuda.get_device_name(DEVICE)}, torch {torch.__version__}, {precision}: {rate / 1e12:.0f} TFLOP/s, "
        f"copy {bandwidth / 1e9:.0f} GB/s"
    )
    failed: list[str] = []

    def show(what: str, rows: Iterator[Row]) -> None:
        try:
            for row in rows:
                measure.row(row)
        except (Exception, SystemExit) as error:  # `measure.script` exits
            failed.append(what)
            print(f"{what} failed: {error}", flush=True)

    measure.head()
    if options.part != "sites":
        for shape in SHAPES:
            for batch in BATCHES[shape]:
                show(f"{shape}, {batch}", training(shape, batch, options, precision, rate, here))
    if options.part != "training":
        alone: dict[str, float] = {}
        for number in options.sites:
            show(f"{number} sites", sites(number, options.texts, precision, bandwidth, here, "", alone))
        with multi_process_service() as variables:
            for number in options.sites if variables else ():
                service = here | (variables or {})
                show(
                    f"{number} sites, MPS", sites(number, options.texts, precision, bandwidth, service, ", MPS", alone)
                )
        with tempfile.TemporaryDirectory() as name:
            model = gpu_lora.model_folder(Path(name))
            for number in options.sites:
                show(f"{number} LoRA sites", gpu_lora.rows(number, Path(name), model))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
