"""Prepared voice, seed and epoch to batches for the GPT.

Source: GPT-SoVITS `AR/data/dataset.py` (`collate`), `AR/data/data_module.py`. Axes: B batch,
X phonemes, Y codes, R rejected codes, C channels of BERT.

Three things differ from upstream by default, and not with `compat`: phonemes are padded on the
left, which is the side that attention does not see (upstream hides the left and pads the right, so
that short rows lose their first phonemes); lengths are padded further, to a few sizes, because
every new shape has to be traced and compiled again; and batches mix lengths less, see
`t2s_order.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_vits.config import BERT_CHANNELS
from mlx_vits.preprocessing.bert_features import bert_file, read_bert_features
from mlx_vits.training.rejected import Rejection, draw_rejections, reject
from mlx_vits.training.t2s_footprint import T2SClips
from mlx_vits.training.t2s_order import batch_size_for, epoch_order, upstream_order
from mlx_vits.training.t2s_rows import EOS, T2SItem, read_rows, repeat
from mlx_vits.training.t2s_step import T2SBatch

Fields = dict[str, np.ndarray]


class T2SUtterance(NamedTuple):
    """One clip, ready to be batched.

    Attributes:
        phones: `(X,)` int32.
        codes: `(Y,)` int32.
        bert: `(X, C)`; None for zeros.
    """

    phones: np.ndarray
    codes: np.ndarray
    bert: np.ndarray | None = None


class T2SPadding(NamedTuple):
    """Padded lengths are multiples of these."""

    phones: int = 32
    codes: int = 64


class T2SVoice:
    """The clips of a prepared folder that the GPT is trained on.

    Args:
        folder: with texts, codes and BERT features, see `preprocessing.prepared`.
        version: of the phoneme symbols.
        eos: of the GPT.
        dpo: whether batches have spoiled codes.
        compat: whether clips, order and padding are upstream's.

    Attributes:
        items: clips to train on, without repeats.
        left_out: the others, see `t2s_rows.count_reasons`.
        bert_width: of the batches' BERT features, 0 where no clip has any.

    Raises:
        DataError: nothing in the folder can be trained on; the reason is named.
    """

    def __init__(
        self,
        folder: Path,
        version: str,
        *,
        eos: int = EOS,
        dpo: bool = False,
        compat: bool = False,
    ):
        self.folder, self.eos, self.dpo, self.compat = folder, eos, dpo, compat
        self.items, self.left_out = read_rows(folder, version, eos=eos, compat=compat)
        self.bert_width = BERT_CHANNELS if any(item.has_bert for item in self.items) else 0

    def repeated(self) -> list[T2SItem]:
        """The items of one epoch: fewer than 100 are repeated toward that number."""
        return repeat(self.items)

    def batch_size(self, asked: int) -> int:
        """Return the batch size that is used where the user asks for one, as upstream has it."""
        return batch_size_for(len(self.repeated()), asked, dpo=self.dpo)

    def largest_batch(self, batch_size: int) -> T2SClips:
        """The shape of the largest batch that may come."""
        phones, codes = T2SPadding(1, 1) if self.compat else T2SPadding()
        return T2SClips(
            batch_size,
            _round_up(max(len(item.ids) for item in self.items), phones),
            _round_up(max(len(item.codes) for item in self.items), codes),
        )

    def plan(self, batch_size: int, seed: int, epoch: int) -> list[list[T2SItem]]:
        """The batches of one epoch, from 1, not yet read."""
        items = self.repeated()
        seconds = [item.seconds for item in items]
        if self.compat:
            order = upstream_order(seconds, batch_size, epoch - 1)
        else:
            order = epoch_order(seconds, batch_size, seed, epoch)
        return [[items[index] for index in batch] for batch in order]

    def batches(self, batch_size: int, seed: int, epoch: int, start: int = 0) -> Iterator[T2SBatch]:
        """The batches of one epoch from the `start`-th on."""
        for fields in self._fields(batch_size, seed, epoch, start):
            yield T2SBatch(**{name: mx.array(array) for name, array in fields.items()})

    def endless(self, batch_size: int, seed: int, epoch: int, start: int = 0) -> Iterator[Fields]:
        """The fields of batch after batch, epoch after epoch; for `Ahead`.

        Args:
            epoch: the first, from 1.
            start: batches of the first epoch that are left out.
        """
        for number in count(epoch):
            yield from self._fields(batch_size, seed, number, start)
            start = 0

    def read(self, item: T2SItem) -> T2SUtterance:
        """Read one clip.

        Raises:
            DataError: its BERT features are damaged or do not fit its phonemes; they are named.
        """
        path, bert = bert_file(self.folder, item.name), None
        if item.has_bert:
            bert = read_bert_features(path, len(item.ids))
        return T2SUtterance(np.array(item.ids, np.int32), np.array(item.codes, np.int32), bert)

    def _fields(self, batch_size: int, seed: int, epoch: int, start: int) -> Iterator[Fields]:
        for number, items in enumerate(self.plan(batch_size, seed, epoch)[start:], start):
            utterances = [self.read(item) for item in items]
            rejections = None
            if self.dpo:
                # Of its place alone, so that a resumed run draws what it would have drawn.
                random = np.random.default_rng([seed, epoch, number])
                lengths = [len(utterance.codes) for utterance in utterances]
                rejections = draw_rejections(lengths, random, compat=self.compat)
            yield pad_utterances(
                utterances,
                bert_width=self.bert_width,
                eos=self.eos,
                rejections=rejections,
                compat=self.compat,
            )


def pad_utterances(
    utterances: Sequence[T2SUtterance],
    *,
    bert_width: int = BERT_CHANNELS,
    eos: int = EOS,
    rejections: Sequence[Rejection] | None = None,
    padding: T2SPadding | None = None,
    compat: bool = False,
) -> Fields:
    """The fields of a `T2SBatch`, not yet MLX's: what may be done in another thread.

    Args:
        utterances: of any lengths.
        bert_width: C.
        eos: what codes are padded with.
        rejections: for DPO, one for each clip.
        padding: of the lengths; by default `T2SPadding()`, with `compat` none.
        compat: whether to pad as upstream does.
    """
    phone_step, code_step = padding or (T2SPadding(1, 1) if compat else T2SPadding())
    phones = [utterance.phones for utterance in utterances]
    codes = [utterance.codes for utterance in utterances]
    padded_codes = _pad_right(codes, code_step, eos)
    rejected: list[np.ndarray] = []
    if rejections is not None:
        rows = list(padded_codes) if compat else codes
        rejected = [reject(row, how) for row, how in zip(rows, rejections, strict=True)]
    length = _padded_length(phones, phone_step)
    padded_phones = np.zeros((len(phones), length), np.int32)
    bert = np.zeros((len(phones), length, bert_width), np.float32)
    for row, utterance in enumerate(utterances):
        used = len(utterance.phones)
        place = slice(0, used) if compat else slice(length - used, length)
        padded_phones[row, place] = utterance.phones
        if utterance.bert is not None:
            bert[row, place] = utterance.bert
    return {
        "phones": padded_phones,
        "phone_lengths": _lengths(phones),
        "codes": padded_codes,
        "code_lengths": _lengths(codes),
        "bert": bert,
        # Upstream pads with 0 here, which attention does not see.
        "rejected": (
            _pad_right(rejected, code_step, 0 if compat else eos)
            if rejected
            else np.zeros((len(codes), 0), np.int32)
        ),
        "rejected_lengths": _lengths(rejected) if rejected else np.zeros(len(codes), np.int32),
    }


def _lengths(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([len(array) for array in arrays], dtype=np.int32)


def _padded_length(arrays: Sequence[np.ndarray], step: int) -> int:
    return _round_up(max(len(array) for array in arrays), step)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def _pad_right(arrays: Sequence[np.ndarray], step: int, value: int) -> np.ndarray:
    out = np.full((len(arrays), _padded_length(arrays, step)), value, dtype=np.int32)
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = array
    return out
