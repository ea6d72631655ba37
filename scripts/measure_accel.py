"""What each piece of `mlx_vits/accel` is worth: a step and a synthesis with each switched off.

    python scripts/measure_accel.py [--batch 4] [--seconds 5] [--passes 2] [--output accel.json]

Each variant, with one piece off, runs in a process of its own, one after another, in as many passes
as asked for: several in one process slow each other down by half, and their differences are lost in
that. Medians of all passes are printed, how much longer it takes without the piece, and the kernels
of each, which vary with nothing. "all on" comes first and last: what lies between the two is noise.
A piece that is worth less than five percent of both should go.

Full-size models with random weights; the time depends on shapes alone. On a CPU a step without
convolutions as products takes minutes: `--repeat 1`, or leave it out with `--skip`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any
from unittest.mock import patch

import typer

import mlx_vits  # noqa: F401  (before mlx, as it chooses the BLAS)

import mlx.core as mx
import mlx.optimizers as optim

from mlx_vits import accel
from mlx_vits.accel.compilation import compiles_step
from mlx_vits.tools.bench.work import StepParts, Work
from mlx_vits.nn.attention import MultiHeadAttention
from mlx_vits.nn.layers import Convolution
from mlx_vits.training import losses, step
from mlx_vits.training.optimizers import global_norm

Off = Callable[[], AbstractContextManager[Any]]
_WARM_UP = 5  # runs that are not counted: recording, and compiling kernels


def _cuda_pieces() -> dict[str, Off]:
    from mlx_vits.accel.cuda import blocks, fused, recording, training

    def without(*names: str) -> Off:
        kept = {a: b for a, b in blocks.EQUIVALENTS.items() if a.__name__ not in names}
        return lambda: patch.object(blocks, "EQUIVALENTS", kept)

    def parameters(layers: Sequence[Convolution]) -> list[blocks.Parameters]:
        return [layer.parameters_in_use() for layer in layers]

    def gradients(at: fused.Geometry, x: mx.array, w: mx.array, rows: mx.array) -> list[mx.array]:
        return mx.vjp(at.convolve, [x, w], [rows.reshape(len(x), 1, -1, len(w))])[1]

    return {
        "gradients of weights": lambda: patch.object(fused.Geometry, "gradients", gradients),
        "Generator, ResBlock1": without("Generator", "ResBlock1"),
        "DiscriminatorS, DiscriminatorP": without("DiscriminatorS", "DiscriminatorP"),
        "WN": without("WN"),
        "MultiHeadAttention": without("MultiHeadAttention"),
        "FFN, Encoder": without("FFN", "Encoder"),
        "weight norm": lambda: patch.object(blocks, "_parameters", parameters),
        "AdamW": lambda: patch.object(training, "FusedAdamW", optim.AdamW),
        "norms": lambda: patch.object(training, "global_norm", global_norm),
        "queries, keys, values": lambda: patch.object(
            blocks.FusedAttention, "__call__", MultiHeadAttention.__call__
        ),
        "feature loss": lambda: patch.object(training, "feature_loss", losses.feature_loss),
        "judging both": lambda: patch.object(blocks, "judged", step.judged),
        "losses of scores": lambda: patch.multiple(
            training,
            discriminator_loss=losses.discriminator_loss,
            generator_loss=losses.generator_loss,
        ),
        "recording": lambda: patch.object(recording, "Recorder", lambda function: function),
    }


def _cpu_pieces() -> dict[str, Off]:
    from mlx_vits.accel.cpu import blocks

    return {
        "convolutions as products": lambda: patch.object(accel, "convolutions", lambda: None),
        "decoding in pieces": lambda: patch.object(blocks, "FOR_INFERENCE", {}),
    }


@contextmanager
def _all_off(pieces: dict[str, Off]) -> Iterator[None]:
    with ExitStack() as stack:
        for off in pieces.values():
            stack.enter_context(off())
        if accel.backend() == "cuda":
            stack.enter_context(patch("mlx_vits.accel.cuda.blocks.EQUIVALENTS", {}))
        yield


def _timed(run: Callable[[], None]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def _measure(work: Work, variant: str, off: Off, repeat: int) -> dict[str, list[float]]:
    """Seconds of every step and synthesis, and their kernels."""
    with off():
        parts = StepParts(
            work, compiled=compiles_step() and variant not in ("recording", "all off")
        )
        kernels = parts.count_kernels()
        for part in ("step", "synthesis"):
            for _ in range(min(repeat, _WARM_UP)):
                parts.run(part)
        return {
            "step": [_timed(partial(parts.run, "step")) for _ in range(repeat)],
            "step_kernels": [kernels["step"].kernels],
            "synthesis": [_timed(partial(parts.run, "synthesis")) for _ in range(repeat)],
            "synthesis_kernels": [kernels["synthesis"].kernels],
        }


def main(
    version: str = "v2",
    batch: int = 4,
    seconds: float = 5.0,
    repeat: int = 30,
    passes: int = 2,
    skip: Annotated[list[str] | None, typer.Option(help="A piece to leave on.")] = None,
    piece: Annotated[list[str] | None, typer.Option(help="One to measure; else all.")] = None,
    only: Annotated[str | None, typer.Option(help="A variant to measure in this process.")] = None,
    output: Path | None = None,
) -> None:
    """Print a table, and write it as JSON."""
    backend = accel.backend()
    pieces = {"cuda": _cuda_pieces, "cpu": _cpu_pieces, "off": dict}[backend]()
    pieces = {name: off for name, off in pieces.items() if name not in (skip or [])}
    variants: dict[str, Off] = {"all on": ExitStack}
    variants |= {name: off for name, off in pieces.items() if piece is None or name in piece}
    if piece is None:
        variants["all off"] = partial(_all_off, pieces)
    variants["all on again"] = ExitStack
    if only is not None:
        work = Work(version, batch, seconds)
        print(json.dumps(_measure(work, only, variants[only], repeat)))
        return
    found: dict[str, dict[str, list[float]]] = {variant: {} for variant in variants}
    for _ in range(passes):
        for variant in variants:
            command = [sys.executable, *sys.argv, "--only", variant]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            for part, values in json.loads(told.splitlines()[-1]).items():
                found[variant].setdefault(part, []).extend(values)
    result = {
        variant: {part: median(values) for part, values in parts.items()}
        for variant, parts in found.items()
    }
    base = result["all on"]
    print(f"{'without':32} {'step ms':>8} {'kernels':>14} {'synthesis ms':>20} {'kernels':>13}")
    columns = {"step": 1e3, "step_kernels": 1, "synthesis": 1e3, "synthesis_kernels": 1}
    for variant, row in result.items():
        cells = []
        for part, scale in columns.items():
            more = 100 * (row[part] / base[part] - 1) if base[part] else 0.0
            cells.append(f"{scale * row[part]:8.5g} {more:+4.0f}%")
        print(f"{variant:32}", *cells)
    if output:
        output.write_text(json.dumps({"backend": backend, "result": result}, indent=2))


if __name__ == "__main__":
    typer.run(main)
