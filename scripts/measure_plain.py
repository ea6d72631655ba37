"""The training step with and without what `mlx_vits.accel` adds, each in a process of its own.

    python scripts/measure_plain.py [--batch 2] [--seconds 4.5] [--output plain.json]

On a CPU, MLX's dilated, transposed and grouped convolutions are plain loops, and its Linux wheel
carries the reference BLAS. Three steps of a full-size model are measured in one run:

* ours: with `accel`, and the BLAS that was found;
* plain: MLX alone with the wheel's BLAS, what `pip install mlx` gives;
* plain, same BLAS: MLX alone with the BLAS that ours has.

With `accel` it is the median of three steps after one that is not counted. Without it a step may
take minutes: one is measured, the first, as there is nothing in it to warm up that shows beside its
length.
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
    "ours": {},
    "plain": {"MLX_VITS_ACCEL": "off", "MLX_VITS_BLAS": "none"},
    "plain, same BLAS": {"MLX_VITS_ACCEL": "off"},
}


def measure(version: str, batch: int, seconds: float) -> dict[str, object]:
    """Measure the seconds of a step in this process."""
    from mlx_vits import BLAS  # before mlx, as it chooses the BLAS

    import mlx.core as mx

    from mlx_vits import accel
    from mlx_vits.tools.bench.work import StepParts, Work

    work = Work(version, batch, seconds)
    parts = StepParts(work, compiled=False)
    times = []
    for _ in range(1 if accel.backend() == "off" else 4):
        begun = time.perf_counter()
        parts.run("step")
        times.append(time.perf_counter() - begun)
    counted = sorted(times[1:] or times)
    return {
        "seconds": counted[len(counted) // 2],
        "steps": len(counted),
        "accel": accel.backend(),
        "blas": BLAS.name,
        "device": str(mx.default_device()),
        "clip_seconds": work.seconds,
    }


def main(
    version: str = "v2",
    batch: int = 2,
    seconds: Annotated[float, typer.Option(help="length of a clip")] = 4.5,
    output: Annotated[Path | None, typer.Option(help="JSON of the figures")] = None,
    alone: Annotated[bool, typer.Option("--alone", hidden=True)] = False,
) -> None:
    """Measure the three ways one after the other."""
    if alone:  # one way, in a process that was started for it
        print(json.dumps(measure(version, batch, seconds)))
        return
    found = {}
    for name, variables in _WAYS.items():
        command = [sys.executable, __file__, "--version", version, "--batch", str(batch)]
        command += ["--seconds", str(seconds), "--alone"]
        done = subprocess.run(
            command, env=os.environ | variables, stdout=subprocess.PIPE, check=True, text=True
        )
        found[name] = json.loads(done.stdout.splitlines()[-1])
        ratio = found[name]["seconds"] / found["ours"]["seconds"]
        facts = found[name]
        print(f"{name}: {facts['seconds']:.2f} s a step ({facts['blas']} BLAS), {ratio:.1f} x ours")
    if output:
        output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
