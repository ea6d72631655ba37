"""What reading a full-size `.pth` takes: seconds beside a plain read, and memory beside its size.

    python scripts/bench_reading.py [VOICE.pth] [--recipe DIR] [--runs 5]

Without a file it makes one in a temporary folder: DIR's tensors (`state_dict.json`, `meta.json`),
drawn by their recipe, as the voice that GPT-SoVITS would export. Every measurement is a process of
its own, which has imported mlx_vits before the clock starts.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import mlx_vits
import mlx.core as mx
import numpy as np
import typer

from mlx_vits.checkpoints.base import load_generator
from mlx_vits.checkpoints.voice_file import read_voice, write_voice
from mlx_vits.config import Config

ROOT = Path(__file__).resolve().parent.parent
# The largest of the models at hand: v2ProPlus lies beside the checkout, v2 in it.
RECIPES = (ROOT.parent / "shared/goldens/full_v2ProPlus", ROOT / "tests/goldens/full_v2")

KINDS: dict[str, Callable[[Path], Any]] = {
    "plain": lambda path: path.read_bytes(),
    "fp16": lambda path: read_voice(path),
    "fp32": lambda path: load_generator(read_voice(path), consume=True),
}
LABELS = {
    "plain": "plain read of the bytes",
    "fp16": "read_voice: fp16 tensors",
    "fp32": "ready model: fp32",
}


def make_voice(path: Path, recipe: Path) -> None:
    """Writes the exported voice of a recipe."""
    sys.path.insert(0, str(ROOT))  # the recipe's one home is among the tests
    from tests.support.recipe import make_weights

    meta = json.loads((recipe / "meta.json").read_text())
    weights = make_weights(recipe / "state_dict.json", meta["seed"], meta["rules"])
    config = Config.from_dict(meta["config"] | {"version": meta["version"]})
    state = {name: mx.array(array) for name, array in weights.items()}
    write_voice(path, state, config, info="1epoch_1iteration", name=path.stem)


def memory_bytes() -> dict[str, int]:
    """Resident memory of this process, now and at its peak; elsewhere than on Linux the peak."""
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return {
            "now": int(fields["VmRSS"].split()[0]) << 10,
            "peak": int(fields["VmHWM"].split()[0]) << 10,
        }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"now": peak, "peak": peak}


def measure_here(kind: str, path: Path) -> dict[str, float]:
    """Reads the file in this process: seconds, and how far the peak rose, in bytes."""
    before = memory_bytes()["now"]
    started = time.perf_counter()
    kept = KINDS[kind](path)
    seconds = time.perf_counter() - started
    rise = memory_bytes()["peak"] - before
    del kept
    return {"seconds": seconds, "rise": rise}


def measure(kind: str, path: Path, *, cold: bool = False) -> dict[str, float]:
    """The same in a fresh process, where wanted with the file out of the system's cache."""
    if cold:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    command = [sys.executable, __file__, str(path), "--kind", kind]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def report(path: Path, runs: int) -> None:
    """Measures every kind in turn, so that a busy moment meets all of them, and prints a table."""
    size = path.stat().st_size
    can_empty_cache = hasattr(os, "posix_fadvise")
    cold = {kind: measure(kind, path, cold=True)["seconds"] for kind in KINDS if can_empty_cache}
    warm: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(runs):
        for kind, results in warm.items():
            results.append(measure(kind, path))
    print(f"{path.name}: {size / 1e6:.1f} MB; medians of {runs} processes, file in cache")
    print(f"{'':26}{'seconds':>9}{'over plain':>12}{'cold':>8}{'peak / file':>13}")
    plain = median(result["seconds"] for result in warm["plain"])
    for kind, results in warm.items():
        seconds = median(result["seconds"] for result in results)
        rise = median(result["rise"] for result in results)
        first = f"{cold[kind]:.2f}" if kind in cold else "-"
        line = f"{LABELS[kind]:26}{seconds:>9.2f}{seconds - plain:>12.2f}{first:>8}"
        print(f"{line}{rise / size:>13.2f}")
    print(
        f"{platform.platform()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, "
        f"mlx {version('mlx')}, numpy {np.__version__}, mlx_vits {mlx_vits.__version__}"
    )


def main(
    voice: Path | None = typer.Argument(None, help="A .pth; by default one is made.", exists=True),
    recipe: Path | None = typer.Option(None, help="Folder of state_dict.json and meta.json."),
    runs: int = typer.Option(5, min=1, help="Processes for each line."),
    kind: str | None = typer.Option(None, hidden=True, help="Measure one kind here, as JSON."),
) -> None:
    """Prints what reading a voice takes."""
    if voice is not None and kind is not None:
        print(json.dumps(measure_here(kind, voice)))
    elif voice is not None:
        report(voice, runs)
    else:
        chosen = recipe or next(folder for folder in RECIPES if folder.is_dir())
        with tempfile.TemporaryDirectory(prefix="mlx_vits_bench_") as folder:
            made = Path(folder, f"{chosen.name}.pth")
            make_voice(made, chosen)
            report(made, runs)


if __name__ == "__main__":
    typer.run(main)
