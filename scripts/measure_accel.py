"""What each piece of `mlx_vits/accel` is worth: a step and a synthesis with each switched off alone.

    python scripts/measure_accel.py [--batch 4] [--seconds 5] [--rounds 20] [--output accel.json]

All variants are built in one process and measured in turn, a step and a synthesis of each a round,
so that whatever else the machine does falls on all of them. Medians are printed, and how much longer
it takes without the piece. A piece that is worth less than five percent of either should go.

Full-size models with random weights; the time depends on shapes alone. On a CPU a step without
convolutions as products takes minutes: choose `--rounds 1`, or leave it out with `--skip`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
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
from mlx_vits.benchmarking.work import StepParts, Work
from mlx_vits.nn.dropout import dropout
from mlx_vits.nn.masking import masked
from mlx_vits.training.losses import feature_loss
from mlx_vits.training.optimizers import global_norm

Off = Callable[[], AbstractContextManager[Any]]
_WARM_UP = 3  # rounds that are not counted: recording, and compiling kernels


def _cuda_pieces() -> dict[str, Off]:
    from mlx_vits.accel.cuda import blocks, convolution, fused, recording, training

    def without(*names: str) -> Off:
        kept = {a: b for a, b in blocks.EQUIVALENTS.items() if a.__name__ not in names}
        return lambda: patch.object(blocks, "EQUIVALENTS", kept)

    in_two = convolution.conv1d

    def conv1d(x: mx.array, w: mx.array, *geometry: int) -> mx.array:
        # MLX's own gradient of grouped convolutions fails on CUDA.
        return in_two(x, w, *geometry) if geometry[-1] > 1 else mx.conv1d(x, w, *geometry)

    @contextmanager
    def one_dimension() -> Iterator[None]:
        with (
            patch.object(convolution, "conv1d", conv1d),
            patch.object(convolution, "conv_transpose1d", mx.conv_transpose1d),
        ):
            yield

    def gradients(at: fused.Geometry, x: mx.array, w: mx.array, rows: mx.array) -> list[mx.array]:
        cotangent = [rows.reshape(len(x), 1, -1, len(w))]
        return list(mx.vjp(at.convolve, [x, w], cotangent)[1])

    def drop(x: mx.array, p: float, key: Any, mask: mx.array | None = None) -> mx.array:
        return masked(dropout(x, p, key), mask)

    return {
        "convolutions in 2-D": one_dimension,
        "gradients of weights by windows": lambda: patch.object(
            fused.Geometry, "gradients", gradients
        ),
        "Generator, ResBlock1": without("Generator", "ResBlock1"),
        "DiscriminatorS, DiscriminatorP": without("DiscriminatorS", "DiscriminatorP"),
        "WN": without("WN"),
        "MultiHeadAttention": without("MultiHeadAttention"),
        "FFN": without("FFN"),
        "dropout": lambda: patch.object(blocks, "_drop", drop),
        "weight norm": without("WeightNormConv1d", "WeightNormConv2d"),
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
        if "Encoder" in {cls.__name__ for cls in accel._equivalents(False)}:
            from mlx_vits.accel.cuda import blocks

            stack.enter_context(patch.object(blocks, "EQUIVALENTS", {}))
        yield


def _timed(run: Callable[[], None]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def main(
    version: str = "v2",
    batch: int = 4,
    seconds: float = 5.0,
    rounds: int = 20,
    skip: Annotated[list[str] | None, typer.Option(help="A piece to leave on.")] = None,
    output: Path | None = None,
) -> None:
    """Print a table, and write it as JSON."""
    name = accel.backend()
    pieces = {"cuda": _cuda_pieces, "cpu": _cpu_pieces, "off": dict}[name]()
    pieces = {piece: off for piece, off in pieces.items() if piece not in (skip or [])}
    variants: dict[str, Off] = {"all on": ExitStack, **pieces}
    variants["all off"] = partial(_all_off, pieces)
    work, built = Work(version, batch, seconds), {}
    for variant, off in variants.items():
        with off():
            compiled = compiles_step() and variant not in ("recording", "all off")
            built[variant] = StepParts(work, compiled=compiled)
    times: dict[str, list[tuple[float, float]]] = {variant: [] for variant in variants}
    for number in range(-_WARM_UP, rounds):
        for variant, off in variants.items():
            with off():
                parts = built[variant]
                found = _timed(parts.step), _timed(parts.synthesize)
            if number >= 0:
                times[variant].append(found)
    result = {
        variant: {
            "step": median(step for step, _ in found),
            "synthesis": median(synthesis for _, synthesis in found),
        }
        for variant, found in times.items()
    }
    base = result["all on"]
    print(f"{'without':34} {'step ms':>9} {'':>6} {'synthesis ms':>13}")
    for variant, found in result.items():
        more = {part: 100 * (found[part] / base[part] - 1) for part in base}
        print(
            f"{variant:34} {1e3 * found['step']:9.1f} {more['step']:+5.0f}%"
            f" {1e3 * found['synthesis']:13.2f} {more['synthesis']:+5.0f}%"
        )
    if output:
        report = {"work": work.to_dict(), "backend": name, "rounds": rounds, "seconds": result}
        output.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    typer.run(main)
