"""Measures what training steps take at their peak, and fits the factors of `accel/memory.py`.

    python scripts/fit_memory.py [--full] [--output FILE]

Steps of several sizes of model, batch and clip, each the second of a fresh trainer. Prints measured
and estimated peaks and the factors that fit best; `--full` adds the full-size v2, which needs some
6 GB and minutes on a CPU.
"""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import typer

import mlx_vits
import mlx.core as mx
import numpy as np

from mlx_vits import accel
from mlx_vits.accel.memory import MemoryFactors
from mlx_vits.tools.machine import describe_machine
from mlx_vits.checkpoints.base import find_base
from mlx_vits.config import Config, ReducedDims
from mlx_vits.models.vits import MultiPeriodDiscriminator, SynthesizerTrn
from mlx_vits.training.checkpointed import checkpointed
from mlx_vits.training.footprint import Clips, Parts, count_parts, estimate_peak, peak_of
from mlx_vits.training.optimizers import build_optimizers, set_learning_rates
from mlx_vits.training.regularization import PretrainedRegularization, take_anchor
from mlx_vits.training.step import Batch, GANStep
from mlx_vits.training.vits_trainer import freeze_for


class Measured(NamedTuple):
    """Bytes of one step at its peak, with activations kept and with them computed again."""

    name: str
    config: Config
    clips: Clips
    kept: int
    again: int


def noise_batch(config: Config, clips: Clips) -> Batch:
    """Noise in the shapes of a batch."""
    size, frames, phonemes = clips
    dims, data = config.reduced_dims, config.data
    batch = Batch(
        ssl=mx.random.normal((size, frames, dims.ssl_dim)),
        spec=mx.random.uniform(shape=(size, frames, data.spec_channels)),
        spec_lengths=mx.full((size,), frames - 1, mx.int32),
        wav=mx.random.uniform(-0.5, 0.5, (size, frames * data.hop_length, 1)),
        text=mx.zeros((size, phonemes), mx.int32),
        text_lengths=mx.full((size,), phonemes, mx.int32),
        sv_emb=mx.random.normal((size, dims.sv_dim)),
    )
    mx.eval(*batch)
    return batch


def make_step(config: Config, *, compiled: bool = False, recomputes: bool = False) -> GANStep:
    """A step over both nets as a run has it, with initial values for weights."""
    mx.random.seed(0)
    generator, discriminator = SynthesizerTrn(config), MultiPeriodDiscriminator(config)
    freeze_for(generator, "all")
    for net in (generator, discriminator):
        accel.apply(net)
    anchor = take_anchor(generator)
    optimizers = build_optimizers(config)
    set_learning_rates(optimizers, 1e-5, 1e-5, 0.4)
    step = (checkpointed(GANStep) if recomputes else GANStep)(
        generator,
        discriminator,
        optimizers,
        penalty=PretrainedRegularization(anchor, 0.001),
        compiled=compiled,
    )
    accel.optimize(step)
    return step


def measure_peak(config: Config, clips: Clips, **options: bool) -> int:
    """`mx.get_peak_memory()` of the second step of a fresh trainer, in bytes."""
    gc.collect()
    before = mx.get_active_memory()
    step, batch = make_step(config, **options), noise_batch(config, clips)
    for number in range(2):
        mx.reset_peak_memory()
        mx.eval(step(batch, mx.random.key(number)), step.state)
    return mx.get_peak_memory() - before


def configurations() -> dict[str, Config]:
    """The demo's base, and what differs from it in one part."""
    demo = find_base("demo").read_generator().config
    model, dims = demo.model, demo.reduced_dims
    return {
        "demo": demo,
        "half decoder": replace(
            demo, model=replace(model, upsample_initial_channel=model.upsample_initial_channel // 2)
        ),
        "wide judge": replace(demo, reduced_dims=replace(dims, disc_width=2 * dims.disc_width)),
        "deep coders": replace(
            demo, reduced_dims=replace(dims, flow_wn_layers=8, enc_q_wn_layers=24, ssl_dim=256)
        ),
        "short segment": replace(demo, train=replace(demo.train, segment_size=6400)),
    }


SIZES = [Clips(1, 64, 32), Clips(2, 256, 64), Clips(1, 512, 96), Clips(4, 128, 32)]
LONG = [Clips(1, 1024, 192), Clips(3, 512, 128), Clips(1, 1856, 320)]
STARTS = np.array([3.0, 2.0, 1.0, 1.0, 0.5, 3.0])  # of the search for factors
RESTARTS, ROUNDS = 8, 20_000
FULL_SIZES = [Clips(1, 64, 32), Clips(1, 256, 64), Clips(2, 128, 32)]


def fit(parts: list[Parts], peaks: list[int]) -> MemoryFactors:
    """Search for the factors whose estimates are closest to the peaks, none below its own.

    Closest by the worst ratio. Steps at random from several starts: the larger of two sums has no
    least squares, and the search is small.
    """
    counted, measured = np.array(parts), np.array(peaks)
    rng, best, least = np.random.default_rng(0), STARTS, np.inf
    for _ in range(RESTARTS):
        found, worst = STARTS, np.inf
        for _ in range(ROUNDS):
            size = rng.choice([0.3, 0.1, 0.02])
            changes = rng.normal(size=len(found)) * size * (rng.random(len(found)) < 0.5)
            tried = found * np.exp(changes)
            beyond = np.maximum(tried[0] * counted[:, 1], counted[:, 1:] @ tried[1:])
            scale = np.max((measured - counted[:, 0]) / beyond)
            now = np.max((counted[:, 0] + scale * beyond) / measured)
            if now < worst:
                found, worst = tried * scale, now
        if worst < least:
            best, least = found, worst
    return MemoryFactors(*map(float, best))


def main(
    full: bool = typer.Option(False, "--full"),
    compiled: bool = typer.Option(False, "--compiled/--eager"),
    output: Path = typer.Option(Path("fit_memory.json")),
) -> None:
    """Measure, fit and print."""
    works = [(name, config, clips) for name, config in configurations().items() for clips in SIZES]
    works += [("demo", configurations()["demo"], clips) for clips in LONG]
    if full:
        config = Config(reduced_dims=ReducedDims.full_size("v2"))
        works += [("full-size v2", config, clips) for clips in FULL_SIZES]
    measured = []
    print(f"{'':15} clips frames phonemes  kept estimated  again estimated (MB)")
    for name, config, clips in works:
        peaks = [
            measure_peak(config, clips, compiled=compiled, recomputes=again)
            for again in (False, True)
        ]
        measured.append(Measured(name, config, clips, *peaks))
        cells = f"{clips.size:5}{clips.frames:7}{clips.phonemes:9}"
        for again, peak in zip((False, True), peaks, strict=True):
            now = estimate_peak(config, clips, recomputes=again)
            cells += f"{peak / 1e6:7.0f}{now / 1e6:10.0f}"
        print(f"{name:15} {cells}", flush=True)
    parts, factors = [count_parts(one.config, one.clips) for one in measured], {}
    for form in ("kept", "again"):
        peaks = [getattr(one, form) for one in measured]
        found = fit(parts, peaks)
        ratios = [peak_of(part, found) / peak for part, peak in zip(parts, peaks, strict=True)]
        factors[form] = found._asdict()
        print(form, {name: round(value, 2) for name, value in factors[form].items()})
        print(f"estimates are {min(ratios):.2f} to {max(ratios):.2f} times what was measured")
    report = {
        "machine": describe_machine(),
        "factors": factors,
        "steps": [
            {"name": m.name, **m.clips._asdict(), "kept_bytes": m.kept, "again_bytes": m.again}
            for m in measured
        ],
    }
    output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{output}: all of it, with mlx_vits {mlx_vits.__version__}")


if __name__ == "__main__":
    typer.run(main)
