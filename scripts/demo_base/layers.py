"""Functions that the recipe's nets and losses share.

Axes: B batch, T time, C channels, H heads, D channels a head, N samples.
"""

from __future__ import annotations

import mlx.core as mx


def scale_gradient(x: mx.array, by: float | mx.array) -> mx.array:
    """Return x, with its gradient times `by`."""
    constant = mx.stop_gradient(x)
    return constant + by * (x - constant)


def heads(x: mx.array, parts: int, count: int) -> list[mx.array]:
    """Split `(B, T, parts * H * D)`, H = `count`, into as many `(B, H, T, D)`."""
    batch, length, _ = x.shape
    x = x.reshape(batch, length, parts, count, -1).transpose(2, 0, 3, 1, 4)
    # Contiguous, or each product on CUDA would copy it first.
    return [part.squeeze(0) for part in mx.split(mx.contiguous(x), parts)]


def join(x: mx.array) -> mx.array:
    """Merge `(B, H, T, D)` into `(B, T, H * D)`."""
    batch, _, length, _ = x.shape
    return x.swapaxes(1, 2).reshape(batch, length, -1)


def frames_of(wav: mx.array, size: int, hop: int) -> mx.array:
    """Cut `(B, N)` into all frames of `size` samples that lie within it: `(B, T, size)`."""
    batch, samples = wav.shape
    frames, hops = (samples - size) // hop + 1, -(-size // hop)
    # Whole hops side by side: slices, whose gradient is cheap.
    needed = (frames - 1 + hops) * hop
    wav = mx.pad(wav[:, :needed], [(0, 0), (0, max(0, needed - samples))])
    blocks = wav.reshape(batch, -1, hop)
    windows = [blocks[:, i : i + frames] for i in range(hops)]
    return mx.concatenate(windows, axis=-1)[..., :size]
