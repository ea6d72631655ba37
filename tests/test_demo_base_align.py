"""CTC and forced alignment of the demo base's recipe, against brute force."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from mlx_vits.errors import DataError
from scripts.demo_base.alignment import align_clips, sequence
from scripts.demo_base.clips import SILENCE, TRAINED, Clip, frames_at_speed, label_of
from scripts.demo_base.ctc import align, frames_needed, occupancy
from scripts.demo_base.settings import Align, read_settings

PAUSE = 1.5


def _log_probs(seed: int, *shape: int) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=shape)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def _collapse(path: tuple[int, ...], blank: int) -> list[int]:
    return [label for label, _ in itertools.groupby(path) if label != blank]


@pytest.mark.parametrize("target", [[0], [0, 1], [1, 1], [0, 1, 0]])
def test_occupancy_is_that_of_all_paths(target: list[int]) -> None:
    frames, labels = 5, 3  # two labels and the blank
    log_probs = _log_probs(len(target), 1, frames, labels)
    expected, likelihood = np.zeros((frames, labels)), 0.0
    for path in itertools.product(range(labels), repeat=frames):
        if _collapse(path, labels - 1) == target:
            probability = np.exp(log_probs[0, np.arange(frames), path].sum())
            expected[np.arange(frames), path] += probability
            likelihood += probability
    found = occupancy(log_probs, np.array([frames]), [target])
    np.testing.assert_allclose(found.loss, [-np.log(likelihood)], rtol=1e-12)
    np.testing.assert_allclose(found.labels[0], expected / likelihood, atol=1e-6)


def test_clips_of_a_batch_do_not_touch_each_other() -> None:
    log_probs, frames = _log_probs(0, 3, 9, 5), np.array([9, 6, 4])
    targets = [[0, 1, 2, 2], [3], [1, 0]]
    together = occupancy(log_probs, frames, targets)
    for clip, target in enumerate(targets):
        some = log_probs[clip : clip + 1, : frames[clip]]
        alone = occupancy(some, frames[clip : clip + 1], [target])
        np.testing.assert_allclose(together.loss[clip], alone.loss[0], rtol=1e-12)
        inside = together.labels[clip, : frames[clip]]
        np.testing.assert_allclose(inside, alone.labels[0], atol=1e-6)
        np.testing.assert_allclose(inside.sum(axis=1), 1, atol=1e-6)
        assert not together.labels[clip, frames[clip] :].any()


def test_a_clip_too_short_for_ctc_is_refused() -> None:
    assert frames_needed([1, 1, 2]) == 4
    with pytest.raises(ValueError, match="3 labels in 3 frames"):
        occupancy(_log_probs(0, 1, 3, 4), np.array([3]), [[1, 1, 2]])


def _brute_force(scores: np.ndarray, sounds: list[int]) -> float:
    """The score of the best way to lay phones, with pauses between, over all frames."""
    phones = [sound for sound in sounds if sound != SILENCE]
    marks = {0, len(phones)}
    seen = 0
    for sound in sounds:
        marks |= {seen} if sound == SILENCE else set()
        seen += sound != SILENCE
    best, count = -np.inf, 2 * len(phones) + 1
    for states in itertools.combinations_with_replacement(range(count), len(scores)):
        visited = [state for state, _ in itertools.groupby(states)]
        if not set(range(1, count, 2)) <= set(visited):
            continue
        # The first state costs nothing to be in; a pause costs where the text has no mark.
        pauses = [s // 2 for s in visited[1:] if s % 2 == 0 and s // 2 not in marks]
        total = -PAUSE * len(pauses)
        for frame, state in enumerate(states):
            total += scores[frame, phones[state // 2] if state % 2 else SILENCE]
        best = max(best, total)
    return best


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("sounds", [[1], [1, 2], [2, 0, 1], [1, 1, 3]])
def test_alignment_is_the_likeliest(sounds: list[int], seed: int) -> None:
    scores = 2 * _log_probs(seed, 6, 4)
    found = align(scores, sounds, PAUSE)
    phones = [sound for sound in sounds if sound != SILENCE]
    total = scores[np.arange(6), found.labels].sum()
    changes = [key for key, _ in itertools.groupby(zip(found.places, found.labels, strict=True))]
    middle = [p for p, label in changes[1:] if label == SILENCE and 0 <= p < len(phones) - 1]
    total -= PAUSE * sum(p + 1 not in _marked(sounds) for p in middle)
    assert total == pytest.approx(_brute_force(scores, sounds), rel=1e-9)
    spoken = [p for p, label in changes if label != SILENCE]
    assert spoken == list(range(len(phones)))
    assert all(label in (SILENCE, phones[max(p, 0)]) for p, label in changes)


def _marked(sounds: list[int]) -> set[int]:
    places = np.cumsum(np.array(sounds) != SILENCE)
    return {int(place) for place, sound in zip(places, sounds, strict=True) if sound == SILENCE}


def test_more_phones_than_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="3 phones in 2 frames"):
        align(_log_probs(0, 2, 4), [1, 2, 3], PAUSE)


def test_pauses_are_never_doubled() -> None:
    assert sequence([3, 0, 0, 4, 0]) == [0, 3, 0, 4, 0]
    assert sequence([3, 3]) == [0, 3, 3, 0]
    assert label_of("AA1") == label_of("AA") == 1
    assert label_of("SP") == label_of(",") == SILENCE


def test_frames_of_other_speeds_show_the_same_moment() -> None:
    for speed in (0.8, 1.0, 1.25):
        frames = int(100 / speed)
        shown = frames_at_speed(frames, speed, 100)
        # A frame lasts from its number to the next; its middle lies within the one it shows.
        middles = (np.arange(frames) + 0.5) * speed
        assert (shown <= middles).all()
        assert (middles < shown + 1).all()
    assert frames_at_speed(12, 1.0, 10).tolist() == [*range(10), 9, 9]


def _spoken(random: np.random.Generator, sounds: list[int], number: int) -> tuple:
    """A clip whose features show each phone for some frames, and noise."""
    labels = np.concatenate([[p] * int(random.integers(4, 9)) for p in [0, *sounds, 0]])
    features = np.eye(8)[labels] * 3 + random.normal(size=(len(labels), 8))
    clip = Clip("made", f"clip {number}", "made", str(number), TRAINED, sounds, sounds)
    return clip, features.astype(np.float32), labels


def test_phones_are_found_without_being_shown() -> None:
    random = np.random.default_rng(0)
    made = [_spoken(random, random.permutation(np.arange(1, 7))[:4].tolist(), n) for n in range(30)]
    clips, features, labels = (list(part) for part in zip(*made, strict=True))
    found = align_clips(features, clips, _settings(), 0)
    right = np.mean(np.concatenate([a.labels == b for a, b in zip(found, labels, strict=True)]))
    assert right > 0.9
    again = align_clips(features, clips, _settings(), 0)
    assert all((a.labels == b.labels).all() for a, b in zip(found, again, strict=True))


def test_a_clip_too_short_for_its_text_is_named() -> None:
    clip = Clip("made", "short.ogg", "made", "x", TRAINED, [1, 2, 3], [1, 2, 3])
    with pytest.raises(DataError, match=r"short\.ogg: is too short for its text"):
        align_clips([np.zeros((3, 8), np.float32)], [clip], _settings(), 0)


def _settings() -> Align:
    shipped = read_settings().align
    return replace(
        shipped,
        hidden=32,
        batch_size=5,
        learning_rate=0.02,
        ctc_epochs=8,
        rounds=1,
        round_epochs=3,
    )
