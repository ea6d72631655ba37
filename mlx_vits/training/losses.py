"""The loss terms, one pure function each.

Source: GPT-SoVITS `module/losses.py`; HiFi-GAN, arXiv:2010.05646; VITS, arXiv:2106.06103. Every
function returns a scalar. Mel and KL are weighted in `step.py` by the configuration's `c_mel` and
`c_kl`; the factor of the feature loss is upstream's source, and here. All are computed in fp32.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import mlx.core as mx

FEATURE_WEIGHT = 2.0
_ROW = 1024  # elements


def total(x: mx.array) -> mx.array:
    """Sum over all elements, row by row.

    MLX's CPU backend adds up one element after the other, which loses three digits of fp32 over the
    five million elements of the largest tensors.
    """
    x = x.reshape(-1)
    while x.size > _ROW:
        if x.size % _ROW:  # padding copies
            x = mx.pad(x, (0, -x.size % _ROW))
        x = mx.sum(x.reshape(-1, _ROW), axis=1)
    return mx.sum(x)


def added(terms: Iterable[mx.array]) -> mx.array:
    """Sum of scalars."""
    return sum(terms, start=mx.array(0.0))


def mean(x: mx.array) -> mx.array:
    """Mean over all elements, summed as `total` does."""
    return total(x) / x.size


def discriminator_loss(real: Sequence[mx.array], generated: Sequence[mx.array]) -> mx.array:
    """Least squares: real scores to 1, generated ones to 0, summed over sub-discriminators."""
    pairs = zip(real, generated, strict=True)
    return added(mean(mx.square(1.0 - r)) + mean(mx.square(g)) for r, g in pairs)


def generator_loss(generated: Sequence[mx.array]) -> mx.array:
    """Least squares: generated scores to 1, summed over sub-discriminators."""
    return added(mean(mx.square(1.0 - g)) for g in generated)


def feature_loss(
    real: Sequence[Sequence[mx.array]], generated: Sequence[Sequence[mx.array]]
) -> mx.array:
    """Twice the mean absolute difference of feature maps, summed; real ones are constants."""
    pairs = feature_pairs(real, generated)
    return FEATURE_WEIGHT * added(mean(mx.abs(g - r)) for r, g in pairs)


def feature_pairs(
    real: Sequence[Sequence[mx.array]], generated: Sequence[Sequence[mx.array]]
) -> list[tuple[mx.array, mx.array]]:
    """Pair the feature maps of all sub-discriminators, fp32; real ones are constants."""
    return [
        (mx.stop_gradient(r).astype(mx.float32), g.astype(mx.float32))
        for real_maps, generated_maps in zip(real, generated, strict=True)
        for r, g in zip(real_maps, generated_maps, strict=True)
    ]


def kl_loss(
    z_p: mx.array, logs_q: mx.array, m_p: mx.array, logs_p: mx.array, mask: mx.array
) -> mx.array:
    """KL divergence of posterior and prior at a sample.

    Args:
        z_p, logs_q, m_p, logs_p: `(B, T, C)`.
        mask: `(B, T, 1)`. The sum is divided by the number of valid *frames*, as upstream does.
    """
    kl = logs_p - logs_q - 0.5 + 0.5 * mx.square(z_p - m_p) * mx.exp(-2.0 * logs_p)
    return total(kl * mask) / total(mask)


def mel_loss(target: mx.array, generated: mx.array) -> mx.array:
    """Mean absolute difference of log-mels `(B, T, M)`, not yet weighted."""
    return mean(mx.abs(generated - target))
