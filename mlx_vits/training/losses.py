"""The loss terms, one pure function each.

Source: GPT-SoVITS `module/losses.py`; HiFi-GAN, arXiv:2010.05646; VITS, arXiv:2106.06103. Every
function returns a scalar. Mel and KL are weighted in `step.py` by the configuration's `c_mel` and
`c_kl`; the factor of the feature loss is upstream's source, and here. All are computed in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache

import mlx.core as mx

from mlx_vits.models.discriminator import Judgement
from mlx_vits.nn import cuda
from mlx_vits.nn.gradients import with_gradient

FEATURE_WEIGHT = 2.0
_LONG = 1024  # elements that a CPU adds up one after the other


def total(x: mx.array) -> mx.array:
    """Sum over all elements, axis by axis on a CPU.

    One long fp32 sum there loses three digits over the five million elements of the largest
    tensors; short ones do not. A GPU adds up pairs of sums, and every axis is a kernel to it.
    """
    if mx.default_device().type == mx.DeviceType.gpu:
        return mx.sum(x)
    while x.ndim:
        if x.ndim == 1 and x.size > _LONG:
            x = mx.pad(x, (0, -x.size % _LONG)).reshape(-1, _LONG)
        x = mx.sum(x, axis=-1)
    return x


def mean(x: mx.array) -> mx.array:
    """Mean over all elements, summed as `total` does."""
    return total(x) / x.size


def discriminator_loss(real: Sequence[mx.array], generated: Sequence[mx.array]) -> mx.array:
    """Least squares: real scores to 1, generated ones to 0, summed over sub-discriminators."""
    pairs = zip(real, generated, strict=True)
    return _added(_error(r, 1.0) + _error(g, 0.0) for r, g in pairs)


def generator_loss(generated: Sequence[mx.array]) -> mx.array:
    """Least squares: generated scores to 1, summed over sub-discriminators."""
    return _added(_error(g, 1.0) for g in generated)


def _error(scores: mx.array, target: float) -> mx.array:
    """Mean of the squared distances."""
    if scores.dtype == mx.float32 and cuda.is_used(scores):
        return _error_on_cuda(target)(scores)
    return mean(mx.square(scores - target if target else scores))


@cache
def _error_on_cuda(target: float) -> Callable[[mx.array], mx.array]:
    def forward(scores: mx.array) -> mx.array:
        parts = cuda.error(scores, target, 1 / scores.size)
        return mx.sum(parts) if parts.ndim else parts

    def gradient(primal: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
        return cuda.error_gradient(primal, cotangent, target, 1 / primal.size)

    return with_gradient(forward, gradient)


def feature_loss(
    real: Sequence[Sequence[mx.array]], generated: Sequence[Sequence[mx.array]]
) -> mx.array:
    """Twice the mean absolute difference of feature maps, summed; real ones are constants."""
    pairs = [
        (r, g)
        for real_maps, generated_maps in zip(real, generated, strict=True)
        for r, g in zip(real_maps, generated_maps, strict=True)
    ]
    if all(cuda.is_used(*pair) for pair in pairs):
        return _feature_loss_on_cuda([r for r, _ in pairs])(*(g for _, g in pairs))
    totals = [
        total(mx.abs(g.astype(mx.float32) - mx.stop_gradient(r).astype(mx.float32)))
        for r, g in pairs
    ]
    # Divided and added up together: a scalar costs a GPU as much as a map.
    return FEATURE_WEIGHT * mx.sum(mx.stack(totals) / mx.array([float(g.size) for _, g in pairs]))


def _feature_loss_on_cuda(real: Sequence[mx.array]) -> Callable[..., mx.array]:
    real = [mx.stop_gradient(map_) for map_ in real]
    weights = [FEATURE_WEIGHT / map_.size for map_ in real]

    def forward(*maps: mx.array) -> mx.array:
        of_each = zip(real, maps, weights, strict=True)
        return mx.sum(cuda.join([cuda.distance(*each) for each in of_each]))

    def gradient(
        primals: Sequence[mx.array], cotangent: mx.array, output: mx.array
    ) -> list[mx.array]:
        of_each = zip(real, primals, weights, strict=True)
        return [cuda.distance_gradient(r, g, cotangent, w) for r, g, w in of_each]

    return with_gradient(forward, gradient)


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


def scores(judgements: Sequence[Judgement]) -> list[mx.array]:
    """The scores of all sub-discriminators."""
    return [judgement.score for judgement in judgements]


def features(judgements: Sequence[Judgement]) -> list[list[mx.array]]:
    """The feature maps of all sub-discriminators."""
    return [judgement.features for judgement in judgements]


def _added(terms: Iterable[mx.array]) -> mx.array:
    first, *others = terms
    return sum(others, start=first)
