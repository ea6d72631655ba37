"""Stage `probe`: what the content encoder keeps of what is said, and of who says it.

Linear classifiers, trained on the clips that are trained on: of phones, scored on speech that
nothing was trained on; of speakers, scored on their clips that were kept out. The same for the
codes (one-hot), the teacher's features and a log-mel. Writes `probe.md`.

Axes: S frames, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_vits.system.files import atomic_write
from scripts.demo_base.clips import HELD_OUT, LABELS, TRAINED, UNSEEN, Clip, read_clip_list
from scripts.demo_base.distil import log_mel
from scripts.demo_base.linear import LinearProbe, fit_linear
from scripts.demo_base.settings import Settings
from scripts.demo_base.store import read_arrays, read_clips, say
from scripts.demo_base.whisper import HOP

_MOST_FRAMES = 40000  # that a classifier is trained on, drawn at random
_EPOCHS, _BATCH, _RATE = 12, 512, 0.01


class Subject(NamedTuple):
    """Something to be probed.

    Attributes:
        name: in the table.
        frames: `(S, C)` of each clip; `(S,)` of codes.
        dense: the frames as `(N, C)` floats.
    """

    name: str
    frames: list[np.ndarray]
    dense: Callable[[np.ndarray], np.ndarray]


class Row(NamedTuple):
    """Accuracies of one subject.

    Attributes:
        phones: by group of clips.
        speaker_frames, speaker_clips: mean over speakers, of single frames and of clips' means.
    """

    name: str
    phones: dict[str, float]
    speaker_frames: float
    speaker_clips: float


def probe_stage(work: Path, settings: Settings) -> str:
    """Runs the stage; the table."""
    clips = read_clip_list(work / "clips.json")
    labels = read_clips(work / "labels.npz", "align")["labels"]
    rows = []
    for subject in subjects(work):
        rows.append(probe(subject, clips, labels, settings.seed))
        say(f"probed: {subject.name}")
    table = format_table(rows, clips, labels)
    with atomic_write(work / "probe.md") as file:
        file.write(table.encode())
    print(table)
    return table


def subjects(work: Path) -> list[Subject]:
    """The encoder's features, the codes, the teacher's features, and a log-mel, at speed 1."""

    def floats(x: np.ndarray) -> np.ndarray:
        return x.astype(np.float32)

    features = read_clips(work / "features.npz", "codebook")["features"]
    codes = read_clips(work / "codes.npz", "codebook")["codes"][: len(features)]
    entries = len(read_arrays(work / "codebook.npz", "codebook")["entries"])
    wavs = read_clips(work / "wav16_0.npz", "prepare")["wav"]
    return [
        Subject("content encoder", features, floats),
        Subject("codes", [np.repeat(c, 2) for c in codes], lambda x: _one_hot(x, entries)),
        Subject("teacher", read_clips(work / "teacher.npz", "teach")["features"], floats),
        Subject("log-mel", [clip_mel(wav) for wav in wavs], floats),
    ]


def clip_mel(wav: np.ndarray) -> np.ndarray:
    """Log-mel `(S, 80)` of an int16 clip at 16 kHz, its loudness taken out."""
    frames = (len(wav) - 80) // HOP
    x = mx.array(wav[None, : frames * HOP + 80].astype(np.float32) / 32768)
    return np.array(log_mel(x, mx.ones((1, frames, 1)))[0])


def _one_hot(codes: np.ndarray, entries: int) -> np.ndarray:
    return np.eye(entries, dtype=np.float32)[codes]


def groups(clips: Sequence[Clip]) -> dict[str, list[int]]:
    """Clips that nothing was trained on: kept out, by voice, and unseen speakers."""
    found: dict[str, list[int]] = {}
    for number, clip in enumerate(clips):
        if clip.use == HELD_OUT:
            found.setdefault(f"{clip.voice}, kept out", []).append(number)
        elif clip.use == UNSEEN:
            found.setdefault(clip.speaker, []).append(number)
    return found


def probe(subject: Subject, clips: Sequence[Clip], labels: list[np.ndarray], seed: int) -> Row:
    """Probes for phones and for speakers."""
    trained = [number for number, clip in enumerate(clips) if clip.use == TRAINED]
    frames, phones = zip(
        *(steady_frames(f, label) for f, label in zip(subject.frames, labels, strict=True)),
        strict=True,
    )
    accuracy = _probe_phones(subject, frames, phones, trained, groups(clips), seed)
    speakers = sorted({clips[number].speaker for number in trained})
    who = np.array([speakers.index(c.speaker) if c.speaker in speakers else -1 for c in clips])
    tested = [number for number, clip in enumerate(clips) if clip.use == HELD_OUT]
    every = [np.full(len(f), w) for f, w in zip(subject.frames, who, strict=True)]
    of_frames = _probe_speakers(subject, subject.frames, every, trained, tested, seed)
    means = [subject.dense(f).mean(axis=0, keepdims=True) for f in subject.frames]
    mean_subject = subject._replace(dense=lambda x: x)
    of_clips = _probe_speakers(mean_subject, means, list(who[:, None]), trained, tested, seed)
    return Row(subject.name, accuracy, of_frames, of_clips)


def steady_frames(frames: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames within one phone and their labels; the encoder's lie between two of the teacher's."""
    count = min(len(frames), len(labels) - 1)
    within = labels[:count] == labels[1 : count + 1]
    return frames[:count][within], labels[:count][within]


def _probe_phones(
    subject: Subject,
    frames: Sequence[np.ndarray],
    phones: Sequence[np.ndarray],
    trained: list[int],
    tested: dict[str, list[int]],
    seed: int,
) -> dict[str, float]:
    x, y = (_sample([parts[i] for i in trained], seed) for parts in (frames, phones))
    probe = _fit(subject.dense(x), y, LABELS, seed)
    found = {}
    for name, numbers in tested.items():
        right = total = 0
        for i in numbers:
            if len(frames[i]):
                right += (probe.logits(subject.dense(frames[i])).argmax(axis=1) == phones[i]).sum()
                total += len(phones[i])
        found[name] = right / max(1, total)
    return found


def _probe_speakers(
    subject: Subject,
    frames: Sequence[np.ndarray],
    who: Sequence[np.ndarray],
    trained: list[int],
    tested: list[int],
    seed: int,
) -> float:
    x, y = (_sample([parts[i] for i in trained], seed) for parts in (frames, who))
    classes = int(max(part.max() for part in who)) + 1
    counts = np.bincount(y, minlength=classes)
    probe = _fit(subject.dense(x), y, classes, seed, 1 / np.maximum(counts, 1)[y])
    right, total = np.zeros(classes), np.zeros(classes)
    for i in tested:
        found = probe.logits(subject.dense(frames[i])).argmax(axis=1)
        right[who[i][0]] += (found == who[i]).sum()
        total[who[i][0]] += len(found)
    return float(np.mean(right[total > 0] / total[total > 0]))


def _sample(parts: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """At most so many rows, the same ones for equal lengths."""
    rows = np.concatenate(list(parts))
    chosen = np.random.default_rng(seed).permutation(len(rows))[:_MOST_FRAMES]
    return rows[np.sort(chosen)]


def _fit(
    x: np.ndarray, y: np.ndarray, classes: int, seed: int, weights: np.ndarray | None = None
) -> LinearProbe:
    settings = {"epochs": _EPOCHS, "batch_size": _BATCH, "learning_rate": _RATE, "seed": seed}
    return fit_linear(x, y, classes, weights=weights, **settings)


def format_table(rows: Sequence[Row], clips: Sequence[Clip], labels: list[np.ndarray]) -> str:
    """The table in Markdown, with what guessing would give."""
    tested = groups(clips)
    speakers = {clip.speaker for clip in clips if clip.use == TRAINED}
    counts = np.bincount(
        np.concatenate([labels[i] for i, clip in enumerate(clips) if clip.use == TRAINED]),
        minlength=LABELS,
    )
    most = counts.argmax()
    guessed = {
        name: float(np.mean(np.concatenate([labels[i] for i in numbers]) == most))
        for name, numbers in tested.items()
    }
    chance = Row("guessing", guessed, 1 / len(speakers), 1 / len(speakers))
    head = ["", *(f"phones: {name}" for name in tested), "speaker: frame", "speaker: clip"]
    lines = [head, ["---"] * len(head)]
    for row in [*rows, chance]:
        values = [*(row.phones[name] for name in tested), row.speaker_frames, row.speaker_clips]
        lines.append([row.name, *(f"{value:.1%}" for value in values)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
