"""Connectionist temporal classification and forced alignment, in numpy.

Source: Graves et al. 2006, "Connectionist temporal classification"; Rabiner 1989. Axes: B clips,
T frames, K labels with the blank last, S states of a clip.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scripts.demo_base.clips import SILENCE

_NEVER = -1e30


class Occupancy(NamedTuple):
    """What CTC says of a batch.

    Attributes:
        labels: `(B, T, K)`, probability of each label at each frame, given the whole sequence; 0
            after a clip's end. CTC's gradient in the logits is softmax less this.
        loss: `(B,)`, negative log-likelihood of the sequences.
    """

    labels: np.ndarray
    loss: np.ndarray


class Alignment(NamedTuple):
    """Of one clip.

    Attributes:
        labels: `(T,)` of each frame.
        places: `(T,)` which phone of the clip it is, from 0; in a pause the phone before it, -1
            before the first.
    """

    labels: np.ndarray
    places: np.ndarray


def frames_needed(targets: Sequence[int]) -> int:
    """The fewest frames that CTC can lay a sequence over: equal neighbours need a blank between."""
    return len(targets) + sum(a == b for a, b in itertools.pairwise(targets))


def occupancy(
    log_probs: np.ndarray, frames: np.ndarray, targets: Sequence[Sequence[int]]
) -> Occupancy:
    """The forward-backward algorithm.

    Args:
        log_probs: `(B, T, K)`, natural logarithms.
        frames: `(B,)`, valid frames of each clip.
        targets: labels of each clip, at least one, without blanks.

    Raises:
        ValueError: a clip has too few frames for its labels.
    """
    for number, (count, target) in enumerate(zip(frames, targets, strict=True)):
        if not target or count < frames_needed(target):
            raise ValueError(f"clip {number}: {len(target)} labels in {count} frames")
    batch, length, width = log_probs.shape
    states = 2 * max(len(target) for target in targets) + 1
    counts = np.array([2 * len(target) + 1 for target in targets])
    labels = np.full((batch, states), width - 1)
    skips = np.zeros((batch, states), bool)  # may be entered from two states before
    for clip, target in enumerate(targets):
        labels[clip, 1 : 2 * len(target) : 2] = target
        skips[clip, 3 : 2 * len(target) : 2] = np.diff(target) != 0
    shape = (batch, length, states)
    emitted = np.take_along_axis(log_probs, np.broadcast_to(labels[:, None], shape), axis=2)
    emitted = np.where(np.arange(states) < counts[:, None, None], emitted, _NEVER)
    forward = _forward(emitted, skips)
    rows, last = np.arange(batch), frames - 1
    total = np.logaddexp(
        forward[rows, last, counts - 1],
        forward[rows, last, counts - 2],
    )
    backward = _backward(emitted, skips, frames, counts)
    posterior = np.exp(np.minimum(forward + backward - total[:, None, None], 0))
    posterior *= (np.arange(length) < frames[:, None])[..., None]
    out = np.zeros((batch, length, width), np.float32)
    at = (rows[:, None, None], np.arange(length)[None, :, None], labels[:, None, :])
    np.add.at(out, at, posterior)
    return Occupancy(out, -total)


def _forward(emitted: np.ndarray, skips: np.ndarray) -> np.ndarray:
    """Log-probability of all paths to each state, its own frame included: `(B, T, S)`."""
    forward = np.full(emitted.shape, _NEVER)
    forward[:, 0, :2] = emitted[:, 0, :2]
    for frame in range(1, emitted.shape[1]):
        before = forward[:, frame - 1]
        paths = np.logaddexp(before, _shift(before, 1))
        paths = np.logaddexp(paths, np.where(skips, _shift(before, 2), _NEVER))
        forward[:, frame] = np.maximum(paths + emitted[:, frame], _NEVER)
    return forward


def _backward(
    emitted: np.ndarray, skips: np.ndarray, frames: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """Log-probability of all paths from each state to the end, its own frame left out."""
    batch, length, states = emitted.shape
    backward = np.full(emitted.shape, _NEVER)
    ends = np.full((batch, states), _NEVER)
    rows = np.arange(batch)
    ends[rows, counts - 1] = ends[rows, counts - 2] = 0
    onward = np.zeros_like(skips)
    onward[:, :-2] = skips[:, 2:]
    for frame in range(length - 1, -1, -1):
        if frame < length - 1:
            after = backward[:, frame + 1] + emitted[:, frame + 1]
            paths = np.logaddexp(after, _shift(after, -1))
            paths = np.logaddexp(paths, np.where(onward, _shift(after, -2), _NEVER))
            backward[:, frame] = np.maximum(paths, _NEVER)
        backward[:, frame] = np.where((frames - 1 == frame)[:, None], ends, backward[:, frame])
    return backward


def _shift(x: np.ndarray, by: int) -> np.ndarray:
    """`(B, S)` moved to later states, or to earlier ones where `by` is negative."""
    moved = np.full_like(x, _NEVER)
    if by > 0:
        moved[:, by:] = x[:, :-by]
    else:
        moved[:, :by] = x[:, -by:]
    return moved


def align(scores: np.ndarray, sounds: Sequence[int], pause_penalty: float) -> Alignment:
    """The likeliest times of the sounds of a text (Viterbi).

    Args:
        scores: `(T, K)` logarithms, without a blank.
        sounds: labels in their order, `SILENCE` where the text has a mark. A pause may lie
            anywhere, at a cost where there is no mark.
        pause_penalty: that cost.

    Raises:
        ValueError: there is no phone, or there are more than frames.
    """
    phones = [sound for sound in sounds if sound != SILENCE]
    if not phones or len(scores) < len(phones):
        raise ValueError(f"{len(phones)} phones in {len(scores)} frames")
    marked, seen = {0, len(phones)}, 0  # before the first phone and after the last
    for sound in sounds:
        if sound == SILENCE:
            marked.add(seen)
        else:
            seen += 1
    # States: pause, phone, pause, phone, …, pause. Those of pauses may be skipped.
    states = np.full(2 * len(phones) + 1, SILENCE)
    states[1::2] = phones
    entry = np.zeros(len(states))
    entry[::2] = [0 if place in marked else -pause_penalty for place in range(len(phones) + 1)]
    path = _best_path(scores[:, states], entry)
    return Alignment(states[path], (path + 1) // 2 - 1)


def _best_path(emitted: np.ndarray, entry: np.ndarray) -> np.ndarray:
    """The likeliest states `(T,)` for scores `(T, S)` and costs of entry `(S,)`."""
    frames, count = emitted.shape
    is_phone = np.arange(count) % 2 == 1
    best = np.full(count, -np.inf)
    best[:2] = emitted[0, :2]
    steps = np.zeros((frames, count), np.int8)
    for frame in range(1, frames):
        step = np.concatenate([[-np.inf], best[:-1]]) + entry
        skip = np.where(is_phone, np.concatenate([[-np.inf] * 2, best[:-2]]), -np.inf)
        choices = np.stack([best, step, skip])
        steps[frame] = choices.argmax(axis=0)
        best = choices.max(axis=0) + emitted[frame]
    state = count - 1 if best[-1] > best[-2] else count - 2
    path = np.zeros(frames, np.int64)
    for frame in range(frames - 1, -1, -1):
        path[frame] = state
        state -= int(steps[frame, state])
    return path
