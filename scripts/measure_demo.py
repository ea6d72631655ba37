"""What a newcomer's first minutes take: clone, set-up, `make finetune VOICE=demo`, timed.

    python3 scripts/measure_demo.py [--seeds 1234 1 2] [--blas none|LIBRARY]

Everything happens in a temporary folder, with an empty compile cache of MLX's; package caches are
used as they are. Needs nothing but the standard library.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WINDOW = 20  # steps at either end whose mel losses are compared


def run(command: list[str], folder: Path, environment: dict[str, str]) -> float:
    """Runs a command to its end and gives its seconds."""
    started = time.monotonic()
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def summary(folder: Path) -> dict[str, Any]:
    """Loudness, mel distance and mel loss, out of a run's own files."""
    scores, losses = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("scores.jsonl", "losses.jsonl")
    )
    mel = [record["loss_mel"] for record in losses]
    return {
        "steps": len(mel),
        "largest_sample": {score["step"]: round(score["largest_sample"]) for score in scores},
        "mel_distance": {score["step"]: round(score["mel_distance"], 4) for score in scores},
        "loss_mel_first": round(mean(mel[:WINDOW]), 3),
        "loss_mel_last": round(mean(mel[-WINDOW:]), 3),
    }


def main() -> None:
    """Clones this checkout's last commit, sets it up, and runs the demo once for each seed."""
    parser = argparse.ArgumentParser(description="Times a newcomer's first minutes.")
    parser.add_argument("--seeds", nargs="+", default=["1234"])
    parser.add_argument("--blas", help="MLX_VITS_BLAS of the runs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mlx_vits_demo_") as name:
        clone, temporary = Path(name, "clone"), Path(name, "tmp")
        temporary.mkdir()
        environment = os.environ | {"TMPDIR": str(temporary)}
        for variable in ("PYTHONPATH", "VIRTUAL_ENV", "MLX_VITS_HOME", "MAKEFLAGS"):
            environment.pop(variable, None)
        if options.blas:
            environment["MLX_VITS_BLAS"] = options.blas
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        print(f"set-up: {run(['make', 'setup'], clone, environment):.0f} s", flush=True)
        for seed in options.seeds:
            command = ["make", "finetune", "VOICE=demo", f"ARGS=--seed {seed}"]
            seconds = run(command, clone, environment)
            resident = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
            print(f"seed {seed}: {seconds:.0f} s, at most {resident:.2f} GB resident so far")
            print(json.dumps(summary(clone / "runs" / "demo"), indent=1), flush=True)
            shutil.rmtree(clone / "runs")


if __name__ == "__main__":
    main()
