"""A batch of noise in the shapes that a model takes."""

from __future__ import annotations

import mlx.core as mx

from mlx_vits.config import Config
from mlx_vits.training.step import Batch


def noise_batch(config: Config, size: int = 2, frames: int = 64, phonemes: int = 8) -> Batch:
    """`size` clips; the first one fills its frames, each other has three fewer than the last."""
    dims, data = config.reduced_dims, config.data
    keys = mx.random.split(mx.random.key(5), 5)
    batch = Batch(
        ssl=mx.random.normal((size, frames, dims.ssl_dim), key=keys[0]),
        spec=mx.random.uniform(shape=(size, frames, data.spec_channels), key=keys[1]),
        spec_lengths=frames - 3 * mx.arange(size, dtype=mx.int32),
        wav=mx.random.uniform(-0.5, 0.5, (size, frames * data.hop_length, 1), key=keys[2]),
        text=mx.random.randint(0, dims.text_vocab, (size, phonemes), key=keys[3]),
        text_lengths=mx.full((size,), phonemes, mx.int32),
        sv_emb=mx.random.normal((size, dims.sv_dim), key=keys[4]),
    )
    mx.eval(*batch)
    return batch
