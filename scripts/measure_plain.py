"""The training step beside the same step on MLX's own convolutions, each in a process of its own.

    python scripts/measure_plain.py [--batch 2] [--seconds 4.5] [--output plain.json]

On a CPU, MLX's dilated, transposed and grouped convolutions are plain loops, and its Linux wheel
carries the reference BLAS. Three steps of a full-size model are measured in one run:

* ours: this project's convolutions and the BLAS it found;
* plain: MLX's convolutions with the wheel's BLAS, what `pip install mlx` gives;
* plain, same BLAS: MLX's convolutions with the BLAS that ours has.

Ours is the median of three steps after one that is not counted. A plain step takes minutes: one is
measured, the first, as there is nothing in it to warm up that shows beside its length.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

_WAYS = {
    "ours": ("auto", None),
    "plain": ("native", "none"),
    "plain, same BLAS": ("native", None),
}


def measure(version: str, batch: int, seconds: float, backend: str) -> dict[str, object]:
    """One way's seconds a step, in this process."""
    from mlx_vits import BLAS  # before mlx, as it chooses the BLAS

    import mlx.core as mx

    from mlx_vits.benchmarking.work import StepParts, Work
    from mlx_vits.nn.conv import conv_backend

    work = Work(version, batch, seconds)
    parts = StepParts(work, compiled=False)
    times = []
    with conv_backend(backend):
        for _ in range(4 if backend == "auto" else 1):
            begun = time.perf_counter()
            parts.step()
            times.append(time.perf_counter() - begun)
    counted = sorted(times[1:] or times)
    return {
        "seconds": counted[len(counted) // 2],
        "steps": len(counted),
        "blas": BLAS.name,
        "device": str(mx.default_device()),
        "clip_seconds": work.seconds,
    }


def main(
    version: str = "v2",
    batch: int = 2,
    seconds: Annotated[float, typer.Option(help="length of a clip")] = 4.5,
    output: Annotated[Path | None, typer.Option(help="JSON of the figures")] = None,
    way: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measures the three ways one after the other."""
    if way:
        print(json.dumps(measure(version, batch, seconds, _WAYS[way][0])))
        return
    found = {}
    for name, (_, blas) in _WAYS.items():
        command = [sys.executable, __file__, "--version", version, "--batch", str(batch)]
        command += ["--seconds", str(seconds), "--way", name]
        environment = dict(os.environ)
        if blas:
            environment["MLX_VITS_BLAS"] = blas
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, check=True, text=True
        )
        found[name] = json.loads(done.stdout.splitlines()[-1])
        ratio = found[name]["seconds"] / found["ours"]["seconds"]
        facts = found[name]
        print(f"{name}: {facts['seconds']:.2f} s a step ({facts['blas']} BLAS), {ratio:.1f} x ours")
    if output:
        output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
