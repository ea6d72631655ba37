"""The audio section: recording, base and fine-tuned side by side, with spectrograms."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

from mlx_vits.audio.files import read_audio, resample
from mlx_vits.config import DataSection
from mlx_vits.errors import DataError
from mlx_vits.report.curves import nice_ticks, percent
from mlx_vits.report.results import TAKES, RunResults
from mlx_vits.report.spectrograms import DECIBELS, frequency_rows, gradient, log_mel, paint
from mlx_vits.synthesis.scoring import FULL_SCALE

_TITLES = dict(zip(TAKES, ("Recording", "Base", "Fine-tuned"), strict=True))
_FREQUENCIES = (500, 1000, 2000, 4000, 8000)  # Hz


class Take(NamedTuple):
    """One of the three versions of a clip.

    Attributes:
        kind: one of `TAKES`.
        pcm: `(N,)` int16 samples of the file.
        rate: Hz.
        mel: `(T, M)` in dB.
    """

    kind: str
    pcm: np.ndarray
    rate: int
    mel: np.ndarray

    @property
    def seconds(self) -> float:
        return len(self.pcm) / self.rate


def read_take(path: Path, kind: str) -> Take:
    """Read a 16-bit WAV file and compute its spectrogram.

    Raises:
        DataError: the file is missing, damaged or too short to draw.
    """
    recording, data = read_audio(path), DataSection()
    try:
        mel = log_mel(resample(recording.wav, recording.rate, data.sampling_rate), data)
    except ValueError as error:
        raise DataError(f"{path}: is too short to draw ({error}); start the run again") from error
    pcm = np.clip(np.round(recording.wav * 32768.0), -32768, 32767).astype(np.int16)
    return Take(kind, pcm, recording.rate, mel)


def flac(pcm: np.ndarray, rate: int) -> bytes:
    """Encode `(N,)` int16 samples as FLAC: lossless, half of WAV, played by all browsers."""
    file = io.BytesIO()
    soundfile.write(file, pcm, rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def listening_section(results: RunResults) -> str:
    """Build the section's HTML; "" without SoVITS, whose clips it plays.

    Raises:
        DataError: a sample is missing or damaged.
    """
    verdict = results.verdict
    if results.sovits is None:
        return ""
    held_out = verdict["clips_are_held_out"]
    origin = (
        "These clips were never trained on."
        if held_out
        else "No clip was held out, so these are training clips: expect a new text to sound worse."
    )
    clips = "".join(_clip(results, index) for index in range(len(verdict["clips"])))
    return f"""<section id="listen"><h2>Listen</h2>
<p class="lead">{origin} <b>Base</b> and <b>fine-tuned</b> are the recording re-spoken by the model
before and after the fine-tune, with the same noise and with
<code>{escape(verdict["reference"])}</code> as the reference.</p>
<p class="note">Numbers are taken from the model’s raw output, neither normalised nor clipped, in
units of {FULL_SCALE:,} (full scale of 16 bits); only the players clip what is above. The mel
distance is the mean difference of the two log-mel spectrograms to the recording’s: lower is
nearer.</p>
<p class="scale"><span>−{DECIBELS:.0f}&nbsp;dB</span>
<span class="bar" style="background:{gradient()}"></span>
<span>0&nbsp;dB: the loudest point of a clip’s three spectrograms</span></p>
{clips}</section>"""


def _clip(results: RunResults, index: int) -> str:
    verdict = results.verdict
    clip = verdict["clips"][index]
    takes = [read_take(results.sample(clip["name"], kind), kind) for kind in TAKES]
    top = max(float(take.mel.max()) for take in takes)
    longest = max(take.seconds for take in takes)
    base, tuned = (verdict[name]["clips"][index] for name in ("base_score", "final_score"))
    numbers = {"recording": _recording_numbers(takes[0]), "base": base, "finetuned": tuned}
    figures = "".join(
        _take(take, clip["name"], numbers[take.kind], base, top, longest) for take in takes
    )
    return f"""<article class="clip"><h3><q>{escape(clip["text"])}</q>
<span class="file">{escape(clip["name"])}</span></h3>
<div class="takes">{figures}</div></article>
"""


def _recording_numbers(take: Take) -> dict[str, Any]:
    # A file holds round(32767 x), so its samples are in units of 32,767 as they are.
    samples = np.abs(take.pcm.astype(np.float64))
    return {
        "largest_sample": float(samples.max()),
        "rms": float(np.sqrt(np.mean(np.square(samples)))),
    }


def _take(
    take: Take, clip: str, score: dict[str, Any], base: dict[str, Any], top: float, longest: float
) -> str:
    title = _TITLES[take.kind]
    sound = base64.b64encode(flac(take.pcm, take.rate)).decode()
    entries = [
        ("largest sample", f"{score['largest_sample']:,.0f}"),
        ("rms", f"{score['rms']:,.0f}"),
    ]
    if "mel_distance" in score:
        distance = f"{score['mel_distance']:.3f}"
        if take.kind == "finetuned" and base["mel_distance"]:
            change = score["mel_distance"] / base["mel_distance"] - 1
            distance += f" <span class='change'>({percent(change, sign=True)})</span>"
        entries.append(("mel distance", distance))
    numbers = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in entries)
    return f"""<figure class="take {take.kind}"><figcaption><h4>{title}</h4></figcaption>
<audio controls preload="metadata" aria-label="{escape(f"{title}, {clip}")}"
src="data:audio/flac;base64,{sound}"></audio>
{draw_spectrogram(take, f"{title}, {clip}", top, longest)}
<dl>{numbers}</dl></figure>
"""


def draw_spectrogram(take: Take, name: str, top: float, longest: float) -> str:
    """Build the picture with its axes; the time axis spans the clip's longest take."""
    data = DataSection()
    picture = base64.b64encode(paint(take.mel, top)).decode()
    rows = frequency_rows(_FREQUENCIES, data)
    heights = "".join(
        f'<span class="hz" style="bottom:{100 * row:.1f}%">{_hertz(hz)}</span>'
        for hz, row in zip(_FREQUENCIES, rows, strict=True)
    )
    times = "".join(
        f'<span class="s" style="left:{100 * tick / longest:.1f}%">{tick:g}&nbsp;s</span>'
        for tick in nice_ticks(0, longest)
        if tick <= longest * 0.97
    )
    words = (
        f"Log-mel spectrogram: {name}; {take.seconds:.1f} s from left to right, 0 to "
        f"{data.sampling_rate / 2000:g} kHz from bottom to top, bright where it is loud."
    )
    width = 100 * take.seconds / longest
    height, frames = data.n_mel_channels, len(take.mel)
    return f"""<div class="spectrogram"><div class="plot" data-seconds="{longest:.4f}">
<img alt="{escape(words)}" width="{frames}" height="{height}" style="width:{width:.2f}%"
src="data:image/png;base64,{picture}">
<span aria-hidden="true">{heights}{times}</span></div></div>"""


def _hertz(frequency: int) -> str:
    if frequency < 1000:
        return f"{frequency}&nbsp;Hz"
    return f"{frequency / 1000:g}&nbsp;kHz"
