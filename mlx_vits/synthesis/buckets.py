"""Sentences put into batches of like length.

Source: GPT-SoVITS `TTS_infer_pack/TTS.py` (`to_batch`).
"""

from __future__ import annotations

from collections.abc import Sequence


def batch_sentences(
    lengths: Sequence[int], batch_size: int, *, threshold: float = 0.75, by_length: bool = True
) -> list[list[int]]:
    """Group sentences for T2S.

    Args:
        lengths: of each sentence's normalised text, in characters.
        batch_size: sentences of a batch, at most.
        threshold: a batch ends where its median length falls below this share of its mean.
        by_length: sort by length first; otherwise batches are consecutive sentences.

    Returns:
        Indices into `lengths`, a list for each batch; sorted by length within one if `by_length`.
    """
    order = list(range(len(lengths)))
    if not by_length:
        return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    order.sort(key=lambda index: lengths[index])
    batches = []
    while order:
        batch = order[:batch_size]
        while len(batch) > 1 and _evenness([lengths[i] for i in batch]) < threshold:
            batch.pop()
        batches.append(batch)
        order = order[len(batch) :]
    return batches


def _evenness(lengths: Sequence[int]) -> float:
    mean = sum(lengths) / len(lengths)
    return lengths[len(lengths) // 2] / (mean + 1e-8)
