"""Pictures: spectrograms side by side, and the loudness while each cell is trained."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from eval_demo.results import Outcome, ablation_rows, gather
from eval_demo.runs import RESULT, speech_folder
from eval_demo.settings import BASE, DEFAULT, RECORDING, Run, Settings
from mlx_vits.audio.files import read_audio
from mlx_vits.audio.spectrogram import spectrogram
from mlx_vits.config import DataSection
from mlx_vits.errors import UserError

SPECTROGRAMS, LOUDNESS = "spectrograms.png", "loudness.png"
_QUIETEST_DB = -80.0  # below the loudest of a picture's row


def draw_pictures(settings: Settings, output: Path) -> list[Path]:
    """Draws what is finished.

    Returns:
        The files.

    Raises:
        UserError: matplotlib is not installed, or a file is damaged.
    """
    plots = _matplotlib()
    drawn = []
    minute = settings.ablation
    columns = {
        "recording": Run(minute, RECORDING),
        "base": Run(minute, BASE),
        "fine-tuned": Run(minute, DEFAULT, settings.seeds[0]),
    }
    if all((speech_folder(output, run) / RESULT).is_file() for run in columns.values()):
        drawn.append(output / SPECTROGRAMS)
        _draw_spectrograms(plots, settings, output, columns, drawn[-1])
    rows = ablation_rows(settings, gather(settings, output))
    trained = {name: runs for name, runs in rows.items() if any(run.probes for run in runs)}
    if trained:
        drawn.append(output / LOUDNESS)
        _draw_loudness(plots, trained, drawn[-1])
    return drawn


def _matplotlib() -> Any:
    try:
        importlib.import_module("matplotlib").use("Agg")
        return importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        raise UserError(
            "matplotlib: is not installed; `make eval-demo` installs what the pictures need"
        ) from error


def _draw_spectrograms(
    plots: Any, settings: Settings, output: Path, columns: dict[str, Run], path: Path
) -> None:
    """One row a clip; linear frequency, decibels below the loudest of the row."""
    names = settings.pictured
    figure, axes = plots.subplots(
        len(names), len(columns), figsize=(15, 3.4 * len(names)), squeeze=False
    )
    for row, name in zip(axes, names, strict=True):
        sounds = [
            read_audio(speech_folder(output, run) / Path(name).with_suffix(".flac").name)
            for run in columns.values()
        ]
        levels = [_decibels(sound.wav) for sound in sounds]
        loudest = max(float(level.max()) for level in levels)
        for axis, sound, level, title in zip(row, sounds, levels, columns, strict=True):
            seconds, kilohertz = len(sound.wav) / sound.rate, sound.rate / 2000
            axis.imshow(
                level.T - loudest,
                origin="lower",
                aspect="auto",
                extent=(0, seconds, 0, kilohertz),
                vmin=_QUIETEST_DB,
                vmax=0,
                cmap="magma",
            )
            axis.set_title(f"{Path(name).stem}: {title}")
            axis.set_xlabel("s")
            axis.set_ylabel("kHz")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plots.close(figure)


def _decibels(wav: np.ndarray) -> np.ndarray:
    """`(N,)` to `(T, F)`."""
    data = DataSection(filter_length=1024, hop_length=256, win_length=1024)
    return 20 * np.log10(np.array(spectrogram(mx.array(wav)[None], data))[0])


def _draw_loudness(plots: Any, trained: dict[str, list[Outcome]], path: Path) -> None:
    """A line a cell, the mean of its seeds: largest sample, and loudness over that of step 0."""
    figure, axes = plots.subplots(1, 2, figsize=(15, 6))
    for index, (name, outcomes) in enumerate(trained.items()):
        runs = [outcome.probes for outcome in outcomes if outcome.probes]
        length = min(len(run) for run in runs)
        steps = [probe["step"] for probe in runs[0][:length]]
        peaks = np.mean([[p["largest_sample"] for p in run[:length]] for run in runs], axis=0)
        rms = np.mean([[p["rms"] / run[0]["rms"] for p in run[:length]] for run in runs], axis=0)
        style = "--" if index >= 10 else "-"
        for axis, values in zip(axes, (peaks, rms), strict=True):
            axis.plot(steps, values, style, label=name)
    axes[0].set_title("largest sample of 32,767")
    axes[1].set_title("root mean square, of that at step 0")
    for axis in axes:
        axis.set_xlabel("step")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plots.close(figure)
