"""Whether memory stays flat over hundreds of steps of clips of mixed lengths, and what is compiled.

    python scripts/measure_memory.py [--steps 500] [--batch-size 2] [--compiled] [--output FILE]

Trains the demo's base on the demo's recordings, cut into clips of 1 to 10 seconds. Prints a table
and writes JSON: memory early and late, traces of compiled functions and the number of batch shapes,
and the share of the time that the steps waited for their batches.
"""

from __future__ import annotations

import gc
import json
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import typer

import mlx_vits
import mlx.core as mx
import numpy as np

from mlx_vits.audio.files import read_audio, write_wav
from mlx_vits.tools.machine import describe_machine
from mlx_vits.checkpoints.base import Base, find_base, load_discriminator, load_generator
from mlx_vits.checkpoints.base import weights_home
from mlx_vits.config import Config
from mlx_vits.system.memory import resident_bytes
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.preprocessing.prepare import PrepareOptions, prepare_voice
from mlx_vits.training.batches import PreparedVoice
from mlx_vits.training.regularization import take_anchor
from mlx_vits.training.step import Batch, GANStep, Scalars
from mlx_vits.training.vits_trainer import VITSTrainer, VITSTrainingConfig, freeze_for

EARLY = 50
CLIPS = 24
SHORTEST_SECONDS, LONGEST_SECONDS = 1.0, 10.0


def make_mixed_voice(source: Path, folder: Path, config: Config) -> Path:
    """A prepared voice of `CLIPS` clips of evenly spread lengths, out of another's recordings.

    Args:
        source: a prepared folder.
        folder: to be made.
        config: of the base it was prepared with.
    """
    hop, rate = config.data.hop_length, config.data.sampling_rate
    wavs, features, phonemes = [], [], []
    for line in layout.read_text_lines(source / layout.TEXT_FILE):
        ssl = layout.read_features(
            source / layout.SSL_FOLDER / f"{line.name}.pt", config.reduced_dims.ssl_dim
        )
        wavs.append(read_audio(source / layout.WAV_FOLDER / line.name).wav[: len(ssl) * hop])
        features.append(ssl)
        phonemes += line.phonemes
    wav, ssl = np.concatenate(wavs), np.concatenate(features)
    for name in (layout.WAV_FOLDER, layout.SSL_FOLDER):
        (folder / name).mkdir(parents=True)
    lines = []
    for index, seconds in enumerate(np.linspace(SHORTEST_SECONDS, LONGEST_SECONDS, CLIPS)):
        count = int(seconds * rate / hop)
        start = index * (len(ssl) - count) // CLIPS
        name = f"clip_{index:02}.wav"
        wav_path, ssl_path = layout.clip_files(folder, name, vector=False)
        write_wav(wav_path, wav[start * hop : (start + count) * hop], rate)
        layout.write_features(ssl_path, ssl[start : start + count])
        symbols = phonemes[: max(1, len(phonemes) * count // len(ssl))]
        lines.append(layout.TextLine(name, symbols, ""))
    layout.write_text_lines(folder / layout.TEXT_FILE, lines, [None] * len(lines))
    return folder


class WatchedStep(GANStep):
    """A step that remembers the shapes of its batches."""

    def __init__(self, *args: Any, **options: Any):
        self.shapes: set[tuple[tuple[int, ...], ...]] = set()
        super().__init__(*args, **options)

    def __call__(self, batch: Batch, key: mx.array) -> Scalars:
        self.shapes.add(tuple(array.shape for array in batch))
        return super().__call__(batch, key)


class WatchedTrainer(VITSTrainer):
    step_class = WatchedStep


class Traces:
    """Counts how often functions given to `mx.compile` are traced, within a `with` block."""

    def __init__(self) -> None:
        self.by_function: list[int] = []
        self._compile = mx.compile

    def _watch(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        index = len(self.by_function)
        self.by_function.append(0)

        def counted(*given: Any, **named: Any) -> Any:
            self.by_function[index] += 1
            return function(*given, **named)

        return self._compile(counted, *args, **options)

    def __enter__(self) -> Traces:
        mx.compile = self._watch
        return self

    def __exit__(self, *error: object) -> None:
        mx.compile = self._compile


def make_trainer(base: Base, prepared: Path, options: VITSTrainingConfig) -> WatchedTrainer:
    """A trainer as a run has it."""
    file = base.read_generator()
    generator = load_generator(file, consume=True)
    freeze_for(generator, options.train)
    judge = load_discriminator(base.discriminator, file.config)
    voice = PreparedVoice(prepared, file.config)
    return WatchedTrainer(generator, judge, voice, options, take_anchor(generator))


def take_memory(step: int) -> dict[str, int]:
    """What is in use now, in bytes."""
    gc.collect()
    return {
        "step": step,
        "active": mx.get_active_memory(),
        "cache": mx.get_cache_memory(),
        "resident": resident_bytes(),
        "peak": mx.get_peak_memory(),
    }


def measure(base: Base, prepared: Path, options: VITSTrainingConfig, early: int) -> dict[str, Any]:
    """Runs the steps and takes memory after the `early`-th and the last.

    Returns:
        What the JSON holds.
    """
    with Traces() as traces:
        trainer = make_trainer(base, prepared, options)
        steps = trainer.total_steps
        marks = {early, steps, *range(100, steps, 100)}
        found, times, waited = [], [time.perf_counter()], 0.0
        for record in trainer.steps(lambda step: step in marks):
            times.append(time.perf_counter())
            if record.place.step in marks:
                found.append(take_memory(record.place.step))
            if record.place.step == early:
                waited = trainer.waited_seconds
    shapes = trainer._gan.shapes
    first = next(memory for memory in found if memory["step"] == early)
    late = times[-1] - times[min(early, steps)]
    return {
        "machine": describe_machine(),
        "steps": steps,
        "batch_size": options.batch_size,
        "memory": found,
        "growth": {
            name: found[-1][name] / first[name] - 1
            for name in ("active", "resident")
            if first[name]
        },
        "batch_shapes": len(shapes),
        "traces": traces.by_function,
        "step_seconds": median(b - a for a, b in pairwise(times)),
        "waiting_share": (trainer.waited_seconds - waited) / late if late else None,
        "waited_seconds": trainer.waited_seconds,
    }


def show(report: dict[str, Any]) -> None:
    """Prints the table."""
    print("  step   active    cache resident     peak   (MB)")
    for memory in report["memory"]:
        cells = [f"{memory[name] / 1e6:9.1f}" for name in ("active", "cache", "resident", "peak")]
        print(f"{memory['step']:6}{''.join(cells)}")
    for name, growth in report["growth"].items():
        print(f"{name}: {growth:+.1%} from the first to the last row at step {EARLY} or later")
    print(f"{report['batch_shapes']} shapes of batches, traces of compiled: {report['traces']}")
    print(f"a step takes {report['step_seconds']:.2f} s (median)")
    if report["waiting_share"] is not None:
        print(f"of which it waits for its batch: {report['waiting_share']:.3%}")


def main(
    steps: int = typer.Option(500, min=2),
    batch_size: int = typer.Option(2, min=1),
    compiled: bool | None = typer.Option(None, "--compiled/--eager"),
    output: Path = typer.Option(Path("measure_memory.json")),
) -> None:
    """Measure on the demo base."""
    base = find_base("demo")
    config = base.read_generator().config
    with tempfile.TemporaryDirectory(prefix="mlx_vits_memory_") as name:
        voice = weights_home() / "demo" / "voice"
        source = prepare_voice(voice, Path(name, "demo"), base, config, PrepareOptions(held_out=0))
        mixed = make_mixed_voice(source, Path(name, "mixed"), config)
        options = VITSTrainingConfig(steps=steps, batch_size=batch_size, compiled=compiled)
        report = measure(base, mixed, options, min(EARLY, steps // 2))
    show(report)
    output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{output}: all of it, with MLX {mx.__version__} and mlx_vits {mlx_vits.__version__}")


if __name__ == "__main__":
    typer.run(main)
