"""Stage `codebook`: `ssl_proj`, the codebook, and the codes of every clip at every speed.

`ssl_proj` is the mean of two frames, seen through the distilled head and, at weights, through that
of the melody and through the main directions of a linear classifier of phones. The codebook is
fitted to that by k-means and frozen. Writes `codebook.npz`, `codes.npz`, and `features.npz` at
speed 1 for the probes. Axes: S frames, C channels, E entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_vits.checkpoints.base import load_content_encoder
from mlx_vits.checkpoints.tensors import read_tensors
from mlx_vits.errors import DataError
from mlx_vits.models.hubert import HubertModel
from mlx_vits.preprocessing.features import EncoderClip, batch_by_length, batch_features
from mlx_vits.preprocessing.levels import ENCODER_SCALE
from scripts.demo_base.clips import LABELS, TRAINED, Clip, frames_at_speed, read_clip_list
from scripts.demo_base.linear import fit_linear
from scripts.demo_base.settings import Settings
from scripts.demo_base.store import read_clips, read_lengths, say, write_arrays, write_clips

_ROWS = 16384  # of a distance matrix
_EVERY = 5  # row that variances are taken from


class Projection(NamedTuple):
    """`ssl_proj`: two frames to one vector.

    Attributes:
        weight: `(2 C, C)`.
        bias: `(C,)`.
    """

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, pairs: np.ndarray) -> np.ndarray:
        """`(N, 2 C)` to `(N, C)`."""
        return pairs @ self.weight + self.bias


class Book(NamedTuple):
    """A codebook.

    Attributes:
        entries: `(E, C)`.
        counts: `(E,)`, weight of the points that are nearest to each.
    """

    entries: np.ndarray
    counts: np.ndarray


def codebook_stage(work: Path, settings: Settings) -> None:
    """Runs the stage."""
    if (work / "codes.npz").is_file():
        return
    clips = read_clip_list(work / "clips.json")
    labels = read_clips(work / "labels.npz", "align")["labels"]
    encoder = load_content_encoder(work / "encoder")
    features, shown = [], []  # of all speeds, one after another
    for number, speed in enumerate(settings.speech.speeds):
        wavs = read_clips(work / f"wav16_{number}.npz", "prepare")["wav"]
        heard = encode_clips(encoder, wavs, clips)
        if number == 0:
            write_clips(work / "features.npz", features=heard)
        features += heard
        for f, label in zip(heard, labels, strict=True):
            shown.append(label[frames_at_speed(len(f), speed, len(label))])
        say(f"speed {speed}: {sum(len(f) for f in heard)} frames encoded")
    hop = settings.model.data.hop_length
    frames = [
        samples // hop
        for number in range(len(settings.speech.speeds))
        for samples in read_lengths(work / f"wav32_{number}.npz", "prepare")
    ]
    pairs = [pair_frames(f, count) for f, count in zip(features, frames, strict=True)]
    used = [clip.use == TRAINED for clip in clips] * len(settings.speech.speeds)
    weights = [settings.speech.weights.get(clip.voice, 1.0) for clip in clips]
    weights *= len(settings.speech.speeds)
    trained = [number for number, use in enumerate(used) if use]
    heads = read_tensors(work / "heads.safetensors")
    projection = fit_projection(
        [features[i] for i in trained],
        [shown[i] for i in trained],
        np.array([weights[i] for i in trained]),
        heads.tensors["head.weight"],
        heads.tensors["melody_head.weight"],
        settings,
    )
    points = np.concatenate([projection(pairs[i]) for i in trained])
    weight = np.concatenate([np.full(len(pairs[i]), weights[i]) for i in trained])
    wanted, turns = settings.codebook.entries, settings.codebook.iterations
    book = fit_book(points, weight, wanted, turns, settings.seed)
    error = np.mean(np.square(points - book.entries[nearest(points, book.entries)]))
    used_entries = int((book.counts > 0).sum())
    say(
        f"codebook: {used_entries} of {wanted} entries used, "
        f"{1 - error / np.mean(points.var(axis=0)):.1%} of the variance explained"
    )
    write_arrays(work / "codebook.npz", **projection._asdict(), **book._asdict())
    codes = [nearest(projection(pair), book.entries).astype(np.uint16) for pair in pairs]
    write_clips(work / "codes.npz", codes=codes)


def encode_clips(
    encoder: HubertModel, wavs: Sequence[np.ndarray], clips: Sequence[Clip]
) -> list[np.ndarray]:
    """Features `(S, C)` float16 of int16 clips at 16 kHz, as fine-tuning computes them.

    Raises:
        DataError: a clip is too short, or its features are not numbers.
    """
    order = sorted(range(len(wavs)), key=lambda number: len(wavs[number]))
    found: dict[int, np.ndarray] = {}
    for batch in batch_by_length(order, lambda number: len(wavs[number])):
        scale = np.float32(ENCODER_SCALE / 32768)
        heard = batch_features(
            encoder, [EncoderClip(clips[i].name, wavs[i].astype(np.float32) * scale) for i in batch]
        )
        for number, features in zip(batch, heard, strict=True):
            if isinstance(features, DataError):
                raise features
            found[number] = features.astype(np.float16)
    return [found[number] for number in range(len(wavs))]


def pair_frames(features: np.ndarray, frames: int) -> np.ndarray:
    """Features `(S, C)` of a clip of so many spectrogram frames as `(ceil(frames / 2), 2 C)`.

    The last frame is repeated where there are too few, as fine-tuning does.
    """
    needed = frames + frames % 2
    features = features[:needed].astype(np.float32)
    features = np.pad(features, [(0, needed - len(features)), (0, 0)], mode="edge")
    return features.reshape(needed // 2, -1)


def fit_projection(
    features: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    weights: np.ndarray,
    head: mx.array | np.ndarray,
    melody: mx.array | np.ndarray,
    settings: Settings,
) -> Projection:
    """Fits `ssl_proj`.

    Args:
        features: `(S, C)` of each clip.
        labels: `(S,)` of each clip.
        weights: of each clip.
        head, melody: `(P, C)` and `(2, C)`, weights of the distilled head and of the melody's.
    """
    fit, head, melody = settings.codebook, np.array(head), np.array(melody)
    x = np.concatenate(list(features)).astype(np.float32)
    weight = np.concatenate([np.full(len(f), w) for f, w in zip(features, weights, strict=True)])
    probe = fit_linear(
        x,
        np.concatenate(list(labels)),
        LABELS,
        epochs=fit.probe_epochs,
        batch_size=fit.probe_batch_size,
        learning_rate=fit.probe_learning_rate,
        seed=settings.seed,
        weights=weight,
    )
    mean = np.average(x, axis=0, weights=weight).astype(np.float32)
    some, of = x[::_EVERY] - mean, weight[::_EVERY]
    # A constant added to every logit says nothing.
    said = probe.weight - probe.weight.mean(axis=0)
    covariance = np.cov((some @ said.T).T, aweights=of)
    vectors = np.linalg.eigh(covariance)[1][:, ::-1]
    rest = x.shape[1] - len(head) - len(melody)
    phones = vectors[:, :rest].T.astype(np.float32) @ said

    def variance(rows: np.ndarray) -> float:
        return float(np.average(np.square(some @ rows.T), axis=0, weights=of).sum())

    melody = melody * np.sqrt(fit.melody_weight * variance(head) / variance(melody))
    if rest:
        phones = phones * np.sqrt(fit.phone_weight * variance(head) / variance(phones))
    rows = np.concatenate([head, melody, phones]).T.astype(np.float32)
    return Projection(np.concatenate([rows, rows]) / 2, -mean @ rows)


def fit_book(
    points: np.ndarray, weights: np.ndarray, entries: int, iterations: int, seed: int
) -> Book:
    """Weighted k-means from random points; an entry that nothing is near to begins anew.

    Args:
        points: `(N, C)`.
        weights: `(N,)`.
    """
    random = np.random.default_rng(seed)
    book = points[random.permutation(len(points))[:entries]].astype(np.float32)
    if len(book) < entries:
        raise DataError(f"{len(points)} frames are too few for {entries} codes; give more speech")
    for _ in range(iterations):
        sums, counts = np.zeros(book.shape), np.zeros(entries)
        for first in range(0, len(points), _ROWS):
            rows = slice(first, first + _ROWS)
            block = mx.array(points[rows].astype(np.float32))
            # As a product and not by scattering, whose order of summation is left to chance.
            owner = nearest_entries(block, mx.array(book))[:, None] == mx.arange(entries)
            owner = owner * mx.array(weights[rows].astype(np.float32))[:, None]
            sums += np.array(owner.T @ block)
            counts += np.array(mx.sum(owner, axis=0))
        anew = points[random.permutation(len(points))[:entries]]
        means = sums / np.maximum(counts, 1e-9)[:, None]
        book = np.where(counts[:, None] > 0, means, anew).astype(np.float32)
    counts = np.bincount(nearest(points, book), weights=weights, minlength=entries)
    return Book(book, counts.astype(np.float32))


def nearest(points: np.ndarray, entries: np.ndarray) -> np.ndarray:
    """Index `(N,)` of the entry `(E, C)` that each point `(N, C)` is nearest to."""
    blocks = [points[first : first + _ROWS] for first in range(0, len(points), _ROWS)]
    found = [np.array(nearest_entries(mx.array(b), mx.array(entries))) for b in blocks]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def nearest_entries(points: mx.array, entries: mx.array) -> mx.array:
    """Index `(...)` of the entry `(E, C)` that each point `(..., C)` is nearest to."""
    distance = mx.sum(mx.square(entries), axis=1) - 2 * (points @ entries.T)
    return mx.argmin(distance, axis=-1)
