"""What each piece of `mlx_vits/accel` is worth: a step and a synthesis with each switched off alone.

    python scripts/measure_accel.py [--batch 4] [--seconds 5] [--rounds 10] [--output accel.json]

All variants are built in one process and measured in turn, so that whatever else the machine does
falls on all of them. A round takes three steps and three syntheses of each, of which the first does
not count: the host has another variant's graph in its caches. Medians are printed, and how much
longer it takes without the piece; beside it the kernels of each, which vary with nothing. A piece that is
worth less than five percent of both should go.

Full-size models with random weights; the time depends on shapes alone. On a CPU a step without
convolutions as products takes minutes: choose `--rounds 1`, or leave it out with `--skip`.
"""

from __future__ import annotations

import json
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
from mlx_vits.benchmarking.kernels import count_kernels
from mlx_vits.benchmarking.work import StepParts, Work
from mlx_vits.nn.layers import Convolution
from mlx_vits.training.losses import feature_loss
from mlx_vits.training.optimizers import global_norm

Off = Callable[[], AbstractContextManager[Any]]
_WARM_UP = 1  # rounds that are not counted: recording, and compiling kernels


def _cuda_pieces() -> dict[str, Off]:
    from mlx_vits.accel.cuda import blocks, recording, training

    def without(*names: str) -> Off:
        kept = {a: b for a, b in blocks.EQUIVALENTS.items() if a.__name__ not in names}
        return lambda: patch.object(blocks, "EQUIVALENTS", kept)

    def parameters(layers: Sequence[Convolution]) -> list[blocks.Parameters]:
        return [layer.parameters_in_use() for layer in layers]

    return {
        "all on again": ExitStack,
        "Generator, ResBlock1": without("Generator", "ResBlock1"),
        "DiscriminatorS, DiscriminatorP": without("DiscriminatorS", "DiscriminatorP"),
        "WN": without("WN"),
        "MultiHeadAttention": without("MultiHeadAttention"),
        "FFN, Encoder": without("FFN", "Encoder"),
        "weight norm": lambda: patch.object(blocks, "_parameters", parameters),
        "AdamW": lambda: patch.object(training, "FusedAdamW", optim.AdamW),
        "norms": lambda: patch.object(training, "global_norm", global_norm),
        "feature loss": lambda: patch.object(training, "feature_loss", feature_loss),
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


def main(
    version: str = "v2",
    batch: int = 4,
    seconds: float = 5.0,
    rounds: int = 10,
    skip: Annotated[list[str] | None, typer.Option(help="A piece to leave on.")] = None,
    output: Path | None = None,
) -> None:
    """Print a table, and write it as JSON."""
    name = accel.backend()
    pieces = {"cuda": _cuda_pieces, "cpu": _cpu_pieces, "off": dict}[name]()
    pieces = {piece: off for piece, off in pieces.items() if piece not in (skip or [])}
    variants: dict[str, Off] = {"all on": ExitStack, **pieces}
    variants["all off"] = partial(_all_off, pieces)
    work, built, launches = Work(version, batch, seconds), {}, {}
    for variant, off in variants.items():
        with off():
            compiled = compiles_step() and variant not in ("recording", "all off")
            built[variant] = parts = StepParts(work, compiled=compiled)
            launches[variant] = count_kernels(parts)
    times: dict[str, list[tuple[float, float]]] = {variant: [] for variant in variants}
    for number in range(-_WARM_UP, rounds):
        for variant, off in variants.items():
            with off():
                parts = built[variant]
                found = [[_timed(run) for _ in range(3)] for run in (parts.step, parts.synthesize)]
            if number >= 0:
                times[variant] += list(zip(found[0][1:], found[1][1:], strict=True))
    result = {
        variant: {
            "step": median(step for step, _ in found),
            "synthesis": median(synthesis for _, synthesis in found),
            "step_kernels": launches[variant]["step"].kernels,
            "synthesis_kernels": launches[variant]["synthesis"].kernels,
        }
        for variant, found in times.items()
    }
    base = result["all on"]
    print(f"{'without':32} {'step ms':>8} {'kernels':>14} {'synthesis ms':>20} {'kernels':>13}")
    columns = {"step": 1e3, "step_kernels": 1, "synthesis": 1e3, "synthesis_kernels": 1}
    for variant, row in result.items():
        cells = []
        for name, scale in columns.items():
            more = 100 * (row[name] / base[name] - 1) if base[name] else 0.0
            cells.append(f"{scale * row[name]:8.5g} {more:+4.0f}%")
        print(f"{variant:32}", *cells)
    if output:
        report = {"work": work.to_dict(), "backend": name, "rounds": rounds, "seconds": result}
        output.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    typer.run(main)
