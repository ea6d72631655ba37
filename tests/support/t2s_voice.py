"""Clips of random phonemes and codes, batched as the GPT stage's trainer takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_vits.training.t2s_footprint import T2SClips
from mlx_vits.training.t2s_step import T2SBatch
from tests.support.tiny_gpt import EOS

BERT = 1024


class Clip(NamedTuple):
    phones: np.ndarray
    codes: np.ndarray
    bert: np.ndarray
    rejected: np.ndarray


def random_clips(number: int, seed: int = 3) -> list[Clip]:
    random = np.random.default_rng(seed)
    clips = []
    for _ in range(number):
        phones, codes = random.integers(3, 9), random.integers(6, 14)
        row = random.integers(0, EOS, codes).astype(np.int32)
        clips.append(
            Clip(
                random.integers(1, 700, phones).astype(np.int32),
                row,
                random.normal(0, 0.5, (phones, BERT)).astype(np.float32),
                np.concatenate([row[: codes // 2], row]),
            )
        )
    return clips


def pad(arrays: Sequence[np.ndarray], value: int = 0, *, left: bool = False) -> np.ndarray:
    longest = max(len(array) for array in arrays)
    out = np.full((len(arrays), longest, *arrays[0].shape[1:]), value, arrays[0].dtype)
    for row, array in zip(out, arrays, strict=True):
        start = longest - len(array) if left else 0
        row[start : start + len(array)] = array
    return out


def fields_of(clips: Sequence[Clip], *, compat: bool = False) -> dict[str, np.ndarray]:
    def lengths(arrays: Sequence[np.ndarray]) -> np.ndarray:
        return np.array([len(array) for array in arrays], np.int32)

    phones, codes, bert, rejected = zip(*clips, strict=True)
    return {
        "phones": pad(phones, left=not compat),
        "phone_lengths": lengths(phones),
        "codes": pad(codes, EOS),
        "code_lengths": lengths(codes),
        "bert": pad(bert, left=not compat),
        "rejected": pad(rejected, EOS),
        "rejected_lengths": lengths(rejected),
    }


def batch_of(clips: Sequence[Clip], *, compat: bool = False) -> T2SBatch:
    fields = fields_of(clips, compat=compat)
    return T2SBatch(**{name: mx.array(array) for name, array in fields.items()})


class RandomVoice:
    """A voice of so many clips, in micro-batches in an order of the epoch's own."""

    def __init__(self, number: int, *, dpo: bool = False, compat: bool = False):
        self.clips, self.dpo, self.compat = random_clips(number), dpo, compat

    def batch_size(self, asked: int) -> int:
        return max(1, min(asked, len(self.clips) // 4))

    def plan(self, batch_size: int, seed: int, epoch: int) -> list[list[Clip]]:
        order = np.random.default_rng([seed, epoch]).permutation(len(self.clips))
        return [
            [self.clips[index] for index in order[start : start + batch_size]]
            for start in range(0, len(order), batch_size)
        ]

    def endless(
        self, batch_size: int, seed: int, epoch: int, start: int = 0
    ) -> Iterator[dict[str, np.ndarray]]:
        for number in count(epoch):
            for clips in self.plan(batch_size, seed, number)[start:]:
                yield fields_of(clips, compat=self.compat)
            start = 0

    def largest_batch(self, batch_size: int) -> T2SClips:
        return T2SClips(batch_size, 8, 13)
