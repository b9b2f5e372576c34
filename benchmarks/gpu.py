#!/usr/bin/env python
"""One GPU: local training against the Hugging Face Trainer, and 1 to 16 sites that share the GPU. Needs no network.

    ./run-local.sh benchmarks/gpu.py

The models are BERT-base and DistilBERT with random weights, trained with AdamW on batches of 32 texts of 8 to 128 tokens,
in bf16 if the GPU supports it. Model FLOPs are 6 × (parameters outside the embeddings) × (tokens without padding),
compared with the rate of large matrix products in the same precision. Aggregation needs N reads and 1 write; a copy is 1
read and 1 write.
"""

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import measure
import torch
from gpu_sites import colocated
from gpu_training import BATCH, DEVICE, SHAPES

OURS = "import sys, json, gpu_training as gpu; print(json.dumps(gpu.ours(sys.argv[1], int(sys.argv[2]), sys.argv[3])))"
LIMITS = (
    "import sys, json, gpu; print(json.dumps(gpu.limits(sys.argv[1])))"  # in its own process, which frees the memory
)
TRAINER = (
    "import sys, json, gpu_training as gpu; "
    "print(json.dumps(gpu.trainer(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4])))"
)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--sites", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this machine has no GPU that torch can use")
    measure.wait_until_quiet()
    precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    python, samplings = sys.executable, {"random": "the Trainer's default", "group_by_length": "its `group_by_length`"}
    if importlib.util.find_spec("accelerate") is None:  # the Trainer needs it
        try:
            python = measure.peer("trainer", "transformers==5.23.0", "accelerate==1.15.0", "fsspec", "numpy")
        except subprocess.CalledProcessError:
            print("note: accelerate is neither installed nor installable: the Trainer is left out", flush=True)
            samplings = {}
    # Show one GPU only: the Trainer would use all of them.
    one = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    here = {"PYTHONPATH": f"{measure.ROOT}:{Path(__file__).parent}", "CUDA_VISIBLE_DEVICES": one}
    dtype = {"bf16": "bfloat16", "fp32": "float32"}[precision]
    rate, bandwidth = measure.script(sys.executable, LIMITS, dtype, **here)
    print(
        f"{torch.cuda.get_device_name(DEVICE)}, torch {torch.__version__}, {precision}: {rate / 1e12:.0f} TFLOP/s, copy {bandwidth / 1e9:.0f} GB/s"
    )
    claims = []
    for shape in SHAPES:
        arguments = (shape, options.batches, precision)
        results = measure.in_turn(
            {
                "scaling_fl": lambda arguments=arguments: measure.script(sys.executable, OURS, *arguments, **here),
                **{
                    name: lambda arguments=arguments, name=name: measure.script(python, TRAINER, *arguments, name, **here)
                    for name in samplings
                },
            },
            options.repeats,
        )  # fmt: skip
        speed = {name: statistics.median(row[0] for row in rows) for name, rows in results.items()}
        used = {name: statistics.median(row[1] for row in rows) for name, rows in results.items()}
        mine = f"{speed['scaling_fl']:.0f}/s"
        for peer, name in samplings.items():
            ratio = f"{speed['scaling_fl'] / speed[peer]:.2f}"
            claims.append((f"{shape}, {precision}, against {name}", mine, f"{speed[peer]:.0f}/s", ratio, ""))
        use = f"{used['scaling_fl'] / 1e12:.0f} TFLOP/s"
        theirs = ", ".join(f"{used[name] / rate:.2f}" for name in samplings)
        share = f"{used['scaling_fl'] / rate:.2f}" + f" (Trainer {theirs})" * bool(theirs)
        claims.append((f"{shape}, against the GPU's matrix products", use, f"{rate / 1e12:.0f} TFLOP/s", share, ""))
    for sites in options.sites:
        found = colocated(sites, precision, options.batches * BATCH)
        moved = (sites + 1) * found["bytes"] / found["aggregate"]
        what = f"{sites} DistilBERT sites on the GPU, {found['through']}"
        memory = f"{options.batches * BATCH / found['train']:.0f}/s, {found['memory'] / 2**30:.1f} GiB"
        claims.append((f"{what}: training", memory, "", "", ""))
        ms = f"{1e3 * found['aggregate']:.1f} ms, {moved / 1e9:.0f} GB/s"
        claims.append((f"{what}: aggregation", ms, f"{bandwidth / 1e9:.0f} GB/s", f"{moved / bandwidth:.2f}", ""))
    measure.table(claims)


if __name__ == "__main__":
    main()
