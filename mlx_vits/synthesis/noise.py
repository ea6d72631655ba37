"""The noise of a decoding, drawn so that a frame's does not depend on what is decoded with it.

Axes: T frames, C latent channels.
"""

from __future__ import annotations

import mlx.core as mx

_BLOCK_FRAMES = 64


def draw_noise(channels: int, first: int, frames: int, seed: int) -> mx.array:
    """Draw the standard normal noise of some frames of an utterance.

    Args:
        channels: C.
        first: the first frame, counted from the start of the utterance.
        frames: T.
        seed: of the utterance, 0 to 2^32 - 1.

    Returns:
        `[1, C, T]` float32, in PyTorch's axes.
    """
    start, end = first // _BLOCK_FRAMES, -(-(first + frames) // _BLOCK_FRAMES)
    keys = [mx.random.key(((block + 1) << 32) | int(seed)) for block in range(start, end)]
    blocks = [mx.random.normal((_BLOCK_FRAMES, channels), key=key) for key in keys]
    skipped = first - start * _BLOCK_FRAMES
    return mx.concatenate(blocks)[skipped : skipped + frames].T[None]
