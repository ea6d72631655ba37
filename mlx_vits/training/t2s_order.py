"""In which order and in which batches the GPT sees its clips.

Source: GPT-SoVITS `AR/data/bucket_sampler.py` (`DistributedBucketSampler`),
`AR/data/data_module.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from random import Random

import numpy as np

_BUCKET_SECONDS = 2.0


def batch_size_for(items: int, asked: int, *, dpo: bool = False) -> int:
    """Return the batch size that upstream uses: at most a quarter of the items.

    Args:
        items: of an epoch, repeats included.
        asked: by the user.
        dpo: halves it, since each clip is read twice.
    """
    return max(1, min(asked // 2 if dpo else asked, items // 4))


def epoch_order(
    seconds: Sequence[float], batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    """The batches of one epoch, as indices; clips of similar length together.

    Each bucket of two seconds is shuffled, all are cut into batches from short to long, and the
    batches are shuffled. One batch, that of the longest clips, may be short.

    Args:
        seconds: of every clip.
        seed, epoch: on which alone the order depends.
    """
    random = np.random.default_rng([seed, epoch])
    buckets: dict[int, list[int]] = {}
    for index in sorted(range(len(seconds)), key=seconds.__getitem__):
        buckets.setdefault(int(seconds[index] / _BUCKET_SECONDS), []).append(index)
    order = [bucket[i] for bucket in buckets.values() for i in random.permutation(len(bucket))]
    batches = _cut(order, batch_size)
    return [batches[i] for i in random.permutation(len(batches))]


def upstream_order(
    seconds: Sequence[float], batch_size: int, epoch: int, *, replicas: int = 1, rank: int = 0
) -> list[list[int]]:
    """The batches of one epoch as upstream's sampler and loader make them.

    Its batches mix lengths: the shuffled groups are joined and cut again, so that all that follow a
    short group straddle two; and after a gap in the lengths buckets hold one clip each.

    Args:
        seconds: of every clip.
        epoch: from 0.
        replicas, rank: of the devices, and which of them.
    """
    random = Random(epoch)
    buckets = upstream_buckets(seconds)
    for bucket in buckets:
        random.shuffle(bucket)
    groups = _cut(list(chain(*buckets)), batch_size * replicas)
    random.shuffle(groups)
    order = list(chain(*groups))
    order += order[: -len(order) % replicas]
    return _cut(order[rank::replicas], batch_size)


def upstream_buckets(seconds: Sequence[float]) -> list[list[int]]:
    """Upstream's buckets: the limit moves by one step for each clip that is beyond it."""
    buckets: list[list[int]] = []
    current: list[int] = []
    limit = _BUCKET_SECONDS
    for index in sorted(range(len(seconds)), key=seconds.__getitem__):
        if seconds[index] < limit:
            current.append(index)
        else:
            buckets.append(current)
            current = [index]
            limit += _BUCKET_SECONDS
    return [*buckets, current] if current else buckets


def _cut(order: list[int], size: int) -> list[list[int]]:
    return [order[start : start + size] for start in range(0, len(order), size)]
