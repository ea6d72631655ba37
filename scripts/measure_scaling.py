"""How the time of a training step grows with the batch and with the length of its clips.

    python scripts/measure_scaling.py [--full] [--repeat 5] [--output FILE] [--plot FILE]

Steps of the demo's model, or with `--full` of the full-size v2, on noise. Every repetition measures
each size once, so that whatever else the machine does falls on all of them; the least time of each
is kept. Prints a table, and writes JSON and a plot (SVG).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import typer

import mlx_vits  # noqa: F401  (chooses the BLAS)
import mlx.core as mx

from fit_memory import make_step, noise_batch
from mlx_vits.tools.machine import describe_machine
from mlx_vits.checkpoints.base import find_base
from mlx_vits.config import Config
from mlx_vits.training.footprint import Clips

BATCHES, AT_SECONDS = (1, 2, 4), 4
SECONDS, AT_BATCH = (2, 4, 8, 16), 2
PHONEMES_PER_SECOND = 14
WIDTH, HEIGHT, MARGIN = 340, 230, 52


class Size(NamedTuple):
    """Of a batch: clips, and seconds of each."""

    batch: int
    seconds: int


class Times(NamedTuple):
    """Seconds of a step: on the clock, and of all cores together."""

    wall: float
    cores: float


def all_sizes() -> list[Size]:
    """Those of both plots, each once."""
    sizes = {Size(batch, AT_SECONDS) for batch in BATCHES}
    return sorted(sizes | {Size(AT_BATCH, seconds) for seconds in SECONDS})


def measure(
    config: Config, sizes: Sequence[Size], repetitions: int, *, compiled: bool
) -> dict[Size, Times]:
    """The least times of a step of each size; a first round is not counted."""
    step = make_step(config, compiled=compiled)
    frames = config.data.sampling_rate // config.data.hop_length
    batches = {
        size: noise_batch(
            config, Clips(size.batch, frames * size.seconds, PHONEMES_PER_SECOND * size.seconds)
        )
        for size in sizes
    }
    found: dict[Size, list[Times]] = {size: [] for size in sizes}
    for number in range(repetitions + 1):
        for size, batch in batches.items():
            wall, cores = time.perf_counter(), time.process_time()
            mx.eval(step(batch, mx.random.key(number)), step.state)
            if number:
                taken = Times(time.perf_counter() - wall, time.process_time() - cores)
                found[size].append(taken)
    return {size: Times(*map(min, zip(*times, strict=True))) for size, times in found.items()}


def growth(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The steepest rise between neighbours against a linear one: 1 is linear, below 1 less."""
    pairs = zip(pairwise(sizes), pairwise(seconds), strict=True)
    return max((t2 / t1) / (s2 / s1) for (s1, s2), (t1, t2) in pairs)


def draw(
    panels: Sequence[tuple[str, Sequence[float], Sequence[float]]], title: str, unit: str
) -> str:
    """Panels side by side, each with its points and the line through the first that is linear.

    Args:
        panels: label of the horizontal axis, sizes and seconds.
        title: above them.
        unit: of the seconds.
    """
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {len(panels) * WIDTH} {HEIGHT + 24}"'
        ' font-family="sans-serif" font-size="11">',
        f'<rect width="100%" height="100%" fill="white"/><text x="12" y="16">{title}</text>',
    ]
    for index, (label, sizes, seconds) in enumerate(panels):
        parts.append(f'<g transform="translate({index * WIDTH} 24)">')
        parts += _panel(label, sizes, seconds, unit)
        parts.append("</g>")
    return "".join([*parts, "</svg>\n"])


def _panel(label: str, sizes: Sequence[float], seconds: Sequence[float], unit: str) -> list[str]:
    linear = [seconds[0] * size / sizes[0] for size in sizes]
    top = 1.05 * max(*linear, *seconds)

    def places(values: Sequence[float]) -> list[tuple[float, float]]:
        return [
            (
                MARGIN + size / sizes[-1] * (WIDTH - MARGIN - 14),
                (1 - value / top) * (HEIGHT - MARGIN) + 10,
            )
            for size, value in zip(sizes, values, strict=True)
        ]

    def line(values: Sequence[float], style: str) -> str:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places(values))
        return f'<polyline points="{points}" fill="none" {style}/>'

    parts = [
        line(linear, 'stroke="#999" stroke-dasharray="4 4"'),
        line(seconds, 'stroke="#1f6feb" stroke-width="2"'),
    ]
    floor = HEIGHT - MARGIN + 10
    for (x, y), size, value in zip(places(seconds), sizes, seconds, strict=True):
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#1f6feb"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{value:.2f}</text>')
        parts.append(f'<text x="{x:.1f}" y="{floor + 15}" text-anchor="middle">{size:g}</text>')
    parts.append(f'<path d="M{MARGIN} 10V{floor}H{WIDTH - 10}" fill="none" stroke="#444"/>')
    parts.append(f'<text x="{WIDTH / 2}" y="{floor + 32}" text-anchor="middle">{label}</text>')
    parts.append(f'<text x="{MARGIN + 6}" y="20">{unit} a step; dashed: linear</text>')
    return parts


def report_of(times: dict[Size, Times], pick: Callable[[Times], float]) -> dict[str, Any]:
    """Both series and how they grow."""
    by_batch = [pick(times[Size(batch, AT_SECONDS)]) for batch in BATCHES]
    by_length = [pick(times[Size(AT_BATCH, seconds)]) for seconds in SECONDS]
    return {
        "by_batch": by_batch,
        "by_length": by_length,
        "growth_by_batch": growth(BATCHES, by_batch),
        "growth_by_length": growth(SECONDS, by_length),
    }


def main(
    full: bool = typer.Option(False, "--full"),
    compiled: bool = typer.Option(False, "--compiled/--eager"),
    repeat: int = typer.Option(5, min=1),
    output: Path = typer.Option(Path("measure_scaling.json")),
    plot: Path = typer.Option(Path("measure_scaling.svg")),
) -> None:
    """Measure, print and draw."""
    config = Config() if full else find_base("demo").read_generator().config
    times = measure(config, all_sizes(), repeat, compiled=compiled)
    print("clips seconds   s a step   s of all cores")
    for size, taken in times.items():
        print(f"{size.batch:5}{size.seconds:8}{taken.wall:11.2f}{taken.cores:17.2f}")
    wall, cores = report_of(times, lambda t: t.wall), report_of(times, lambda t: t.cores)
    for name, found in (("on the clock", wall), ("of all cores", cores)):
        print(
            f"{name}: steepest rise against a linear one, by batch "
            f"{found['growth_by_batch']:.2f}, by length {found['growth_by_length']:.2f}"
        )
    machine = describe_machine()
    report = {"machine": machine, "full_size": full, "batches": BATCHES, "seconds": SECONDS}
    report |= {"at_seconds": AT_SECONDS, "at_batch": AT_BATCH, "wall": wall, "cores": cores}
    output.write_text(json.dumps(report, indent=1) + "\n")
    model = "full-size v2" if full else "the demo's model"
    title = f"{model}; {machine['processor']}, {machine['cores']} cores, {machine['device']}"
    # What others run on the same cores lengthens the time on the clock alone.
    on_cpu = machine["device"] == "cpu"
    drawn = cores if on_cpu else wall
    panels = [
        (f"clips of {AT_SECONDS} s in a batch", BATCHES, drawn["by_batch"]),
        (f"seconds of a clip, {AT_BATCH} in a batch", SECONDS, drawn["by_length"]),
    ]
    plot.write_text(draw(panels, title, "processor seconds" if on_cpu else "seconds"))


if __name__ == "__main__":
    typer.run(main)
