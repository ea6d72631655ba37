"""Stage `align`: where each phone of a transcript lies in its clip, without a recogniser.

A small classifier of the teacher's frames is trained with CTC, whose expected labels are its soft
targets; then on its own alignments, a few times over, as hidden Markov models are. (Begun from
phones spread evenly over the clip instead, it did not converge.) It learns from the clips that are
trained on, and aligns all. Writes `labels.npz`. Axes: B clips, T frames, C channels, K labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from mlx_vits.errors import DataError
from scripts.demo_base.clips import LABELS, SILENCE, TRAINED, Clip, read_clip_list
from scripts.demo_base.ctc import Alignment, align, frames_needed, occupancy
from scripts.demo_base.settings import Align, Settings
from scripts.demo_base.store import read_clips, say, write_clips

_LAST_RATE = 0.05  # share of the learning rate at the end of a round
_SMALLEST_COUNT = 10  # of a label, in its frequency


class FrameClassifier(nn.Module):
    """`(B, T, C)` to logits `(B, T, K)`."""

    def __init__(self, channels: int, labels: int, settings: Align):
        super().__init__()
        self.first = nn.Conv1d(channels, settings.hidden, 3, padding=1)
        self.dropout = nn.Dropout(settings.dropout)
        self.second = nn.Linear(settings.hidden, labels)

    def __call__(self, x: mx.array) -> mx.array:
        return self.second(self.dropout(nn.relu(self.first(x))))


def sequence(sounds: Sequence[int]) -> list[int]:
    """The labels of a clip for CTC: a pause at both ends and at marks, never two in a row."""
    labels = [SILENCE]
    for sound in [*sounds, SILENCE]:
        if sound != SILENCE or labels[-1] != SILENCE:
            labels.append(sound)
    return labels


def align_stage(work: Path, settings: Settings) -> None:
    """Runs the stage.

    Raises:
        DataError: a clip is too short for its text.
    """
    if (work / "labels.npz").is_file():
        return
    clips = read_clip_list(work / "clips.json")
    features = read_clips(work / "teacher.npz", "teach")["features"]
    found = align_clips(features, clips, settings.align, settings.seed)
    write_clips(
        work / "labels.npz",
        labels=[clip.labels.astype(np.uint8) for clip in found],
        places=[clip.places.astype(np.int16) for clip in found],
    )


def align_clips(
    features: Sequence[np.ndarray], clips: Sequence[Clip], settings: Align, seed: int
) -> list[Alignment]:
    """Aligns clips with the features `(T, C)` of their teacher.

    Raises:
        DataError: a clip is too short for its text, or has none.
    """
    targets = [sequence(clip.sounds) for clip in clips]
    for clip, target, frames in zip(clips, targets, features, strict=True):
        if len(target) < 2 or len(frames) < frames_needed(target):
            raise DataError(f"{clip.name}: is too short for its text; take it out")
    mx.random.seed(seed)
    trained = [number for number, clip in enumerate(clips) if clip.use == TRAINED]
    trainer = _Trainer(features, trained, settings, seed)

    def expected(model: FrameClassifier, x: mx.array, ids: Sequence[int]) -> mx.array:
        """The expected labels of a batch, from its own scores."""
        model.eval()
        log_probs = np.array(nn.log_softmax(model(x), axis=-1), dtype=np.float64)
        model.train()
        frames = np.array([len(features[i]) for i in ids])
        return mx.array(occupancy(log_probs, frames, [targets[i] for i in ids]).labels)

    model = trainer.run(LABELS + 1, settings.ctc_epochs, expected)
    scores: list[np.ndarray] = [trainer.scores(model, f)[:, :LABELS] for f in features]
    found: list[Alignment] = []
    for turn in range(settings.rounds + 1):
        before = found
        found = [
            align(s, clip.sounds, settings.pause_penalty)
            for s, clip in zip(scores, clips, strict=True)
        ]
        if before:
            pairs = zip(before, found, strict=True)
            changed = np.mean(np.concatenate([a.labels != b.labels for a, b in pairs]))
            say(f"round {turn}: {changed:.1%} of the frames changed")
        if turn < settings.rounds:
            soft = _smoothed(found, settings.label_smoothing)
            model = trainer.run(LABELS, settings.round_epochs, soft)
            own = np.concatenate([found[i].labels for i in trained])
            counts = np.bincount(own, minlength=LABELS) + _SMALLEST_COUNT
            prior = settings.prior_weight * np.log(counts / counts.sum())
            scores = [trainer.scores(model, f) - prior for f in features]
    return found


def _smoothed(found: Sequence[Alignment], smoothing: float) -> Callable[..., mx.array]:
    def targets(model: FrameClassifier, x: mx.array, ids: Sequence[int]) -> mx.array:
        rows = np.zeros((*x.shape[:2], LABELS), np.float32)
        for row, i in zip(rows, ids, strict=True):
            frames = len(found[i].labels)
            row[:frames] = smoothing / LABELS
            row[np.arange(frames), found[i].labels] += 1 - smoothing
        return mx.array(rows)

    return targets


class _Trainer:
    """Trains classifiers on soft targets.

    Args:
        features: `(T, C)` of all clips.
        trained: numbers of those to learn from.
    """

    def __init__(
        self, features: Sequence[np.ndarray], trained: list[int], settings: Align, seed: int
    ):
        self.features, self.settings = features, settings
        some = np.concatenate([features[i][::7] for i in trained]).astype(np.float32)
        self.mean, self.std = some.mean(axis=0), some.std(axis=0) + 1e-5
        order = sorted(trained, key=lambda i: len(features[i]))
        size = settings.batch_size
        self.batches = [order[at : at + size] for at in range(0, len(order), size)]
        self.random = np.random.default_rng(seed)

    def run(self, labels: int, epochs: int, targets: Callable[..., mx.array]) -> FrameClassifier:
        """A new classifier, trained.

        Args:
            targets: a classifier, its input and the clips' numbers to `(B, T, K)`, probabilities
                of each frame's label; 0 after a clip's end.
        """
        settings = self.settings
        model = FrameClassifier(len(self.mean), labels, settings)
        total = epochs * len(self.batches)
        rate = optim.linear_schedule(
            settings.learning_rate, _LAST_RATE * settings.learning_rate, total
        )
        optimizer = optim.AdamW(rate, weight_decay=settings.weight_decay, bias_correction=True)

        def loss_of(x: mx.array, target: mx.array) -> mx.array:
            log_probs = nn.log_softmax(model(x), axis=-1)
            return -mx.sum(target * log_probs) / mx.maximum(mx.sum(target), 1)

        gradient = nn.value_and_grad(model, loss_of)
        for epoch in range(epochs):
            losses = []
            for x, ids in self._epoch():
                loss, grads = gradient(x, targets(model, x, ids))
                optimizer.update(model, grads)
                mx.eval(loss, model.parameters(), optimizer.state)
                losses.append(loss.item())
            say(
                f"classifier of {labels}: epoch {epoch + 1} of {epochs}, loss {np.mean(losses):.3f}"
            )
        model.eval()
        return model

    def _epoch(self) -> Iterator[tuple[mx.array, list[int]]]:
        for number in self.random.permutation(len(self.batches)):
            ids = self.batches[number]
            x = np.zeros(
                (len(ids), max(len(self.features[i]) for i in ids), len(self.mean)), np.float32
            )
            for row, i in zip(x, ids, strict=True):
                row[: len(self.features[i])] = (self.features[i] - self.mean) / self.std
            yield mx.array(x), ids

    def scores(self, model: FrameClassifier, features: np.ndarray) -> np.ndarray:
        """Log-probabilities `(T, K)` of a clip."""
        x = mx.array(((features - self.mean) / self.std).astype(np.float32))
        return np.array(nn.log_softmax(model(x[None])[0], axis=-1))
