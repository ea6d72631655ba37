"""Whether a fine-tune in bf16 ends where those in fp32 do.

    python scripts/compare_precision.py [--voice FOLDER] [--base demo] [--steps 200]
        [--processes 1] [--output FILE]

Trains the same voice with a few seeds in fp32 and once in bf16. Passes where the mean of every loss
over the last quarter of the steps, 151 to 200, lies within mean +- 2 standard deviations of the
fp32 runs, and the verdict on the voice passes. Prints a table and writes JSON; exit status 1 where
it does not pass.
"""

from __future__ import annotations

import json
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import typer

import mlx_vits
from mlx_vits import finetune
from mlx_vits.tools.machine import describe_machine
from mlx_vits.checkpoints.base import choose_base, weights_home
from mlx_vits.finetune import FinetuneOptions
from mlx_vits.report.terminal import TerminalScreen
from mlx_vits.training.log import LOSSES, read_lines
from mlx_vits.training.vits_trainer import VITSTrainingConfig

COMPARED = ("loss_d", "loss_gen", "loss_fm", "loss_mel", "loss_kl", "loss_total")
BOUND = 2.0  # standard deviations
FIRST_SEED = 1234


class Run(NamedTuple):
    """One fine-tune.

    Attributes:
        precision: it was computed in.
        seed: its own.
        means: of each loss over the last quarter of the steps.
        passed: whether the voice is better than the base.
        words: of the verdict.
    """

    precision: str
    seed: int
    means: dict[str, float]
    passed: bool
    words: list[str]


def train(options: FinetuneOptions) -> Run:
    """Fine-tunes into a new folder, and reads what it left."""
    verdict = finetune.start(options, TerminalScreen(max(1, (options.training.steps or 50) // 4)))
    records = read_lines(options.output / LOSSES)
    last = records[-max(1, len(records) // 4) :]
    return Run(
        options.training.precision,
        options.training.seed,
        {name: mean(record[name] for record in last) for name in COMPARED},
        verdict["better_than_base"],
        verdict["words"],
    )


def compare(exact: list[Run], other: Run) -> dict[str, dict[str, Any]]:
    """Each loss of a run beside those of at least two others.

    Returns:
        By loss: `mean` and `deviation` of `exact`, `value` of `other`, and whether it `passed`.
    """
    found = {}
    for name in COMPARED:
        values = [run.means[name] for run in exact]
        centre, deviation = mean(values), stdev(values)
        passed = abs(other.means[name] - centre) <= BOUND * deviation
        found[name] = {
            "mean": centre,
            "deviation": deviation,
            "value": other.means[name],
            "passed": passed,
        }
    return found


def run_all(
    options: FinetuneOptions, seeds: int, folder: Path, processes: int = 1
) -> dict[str, Any]:
    """All runs, compared.

    Args:
        options: of the first one; precision, seed and output are set here.
        seeds: fp32 runs, at least two.
        folder: for the runs.
        processes: runs at a time, each in a process of its own where there are several.

    Returns:
        What the JSON holds.
    """
    plans = []
    for precision, seed in [("fp32", n) for n in range(seeds)] + [("bf16", 0)]:
        training = replace(options.training, precision=precision, seed=FIRST_SEED + seed)
        output = folder / f"{precision}_{seed}"
        plans.append(replace(options, output=output, training=training))
    if processes > 1:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            runs = list(pool.map(train, plans))
    else:
        runs = [train(plan) for plan in plans]
    losses = compare(runs[:-1], runs[-1])
    return {
        "machine": describe_machine(),
        "runs": [run._asdict() for run in runs],
        "losses": losses,
        "passed": runs[-1].passed and all(loss["passed"] for loss in losses.values()),
    }


def main(
    voice: Path | None = typer.Option(None, help="Folder of clips; the demo's otherwise."),
    base: str = typer.Option("demo", help="Its name, or its folder."),
    steps: int = typer.Option(200, min=4),
    batch_size: int = typer.Option(4, min=1),
    segment_size: int = typer.Option(20480, min=1280),
    seeds: int = typer.Option(5, min=2, help="Runs in fp32."),
    processes: int = typer.Option(1, min=1, help="Runs at a time."),
    output: Path = typer.Option(Path("compare_precision.json")),
) -> None:
    """Trains, compares, prints and writes."""
    training = VITSTrainingConfig(steps=steps, batch_size=batch_size, segment_size=segment_size)
    with tempfile.TemporaryDirectory(prefix="mlx_vits_precision_") as name:
        options = FinetuneOptions(
            voice="compared",
            data=(voice or weights_home() / "demo" / "voice").resolve(),
            base=choose_base(base),
            output=Path(name),
            training=training,
            save_every=max(50, steps // 4),
        )
        report = run_all(options, seeds, Path(name), processes)
    for loss, told in report["losses"].items():
        spread = f"{told['mean']:9.4f} +- {told['deviation']:.4f}"
        print(f"{loss:12}{spread}{told['value']:10.4f}  {'' if told['passed'] else 'NOT '}within")
    print(*report["runs"][-1]["words"], sep="\n")
    report["mlx_vits"] = mlx_vits.__version__
    output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{output}: all of it; {'passed' if report['passed'] else 'NOT passed'}")
    if not report["passed"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
