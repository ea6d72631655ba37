"""`enc_q` and `flow`: spectrogram to latent, and latent to the prior's space and back.

Source: GPT-SoVITS `module/models.py` (`PosteriorEncoder`, `ResidualCouplingBlock`); VITS,
arXiv:2106.06103. Axes: B batch, T spectrogram frames, F bins, C latent channels, G conditioning.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_vits.config import Config
from mlx_vits.nn.layers import Conv1d, keep_fp32
from mlx_vits.nn.masking import masked
from mlx_vits.nn.wavenet import WN
from mlx_vits.nn.weight_norm import NormScheme


class Posterior(NamedTuple):
    """A sample of the posterior and its parameters, each `(B, T, C)`."""

    z: mx.array
    m_q: mx.array
    logs_q: mx.array


class PosteriorEncoder(nn.Module):
    """Gaussian posterior of the latent, from the whole linear magnitude spectrogram."""

    def __init__(self, config: Config, norm_scheme: NormScheme):
        super().__init__()
        model, dims = config.model, config.reduced_dims
        self.pre = Conv1d(config.data.spec_channels, model.hidden_channels, 1)
        self.enc = WN(
            model.hidden_channels,
            dims.enc_q_kernel,
            dims.enc_q_wn_layers,
            model.gin_channels,
            norm_scheme,
        )
        self.proj = keep_fp32(Conv1d(model.hidden_channels, 2 * model.inter_channels, 1))

    def __call__(self, spec: mx.array, mask: mx.array, g: mx.array, noise: mx.array) -> Posterior:
        """Samples with given noise.

        Args:
            spec: `(B, T, F)`.
            mask: `(B, T, 1)`.
            g: `(B, 1, G)`.
            noise: `(B, T, C)`, standard normal.
        """
        x = self.pre(spec)
        x = self.enc(masked(x, mask), mask, g)
        m_q, logs_q = mx.split(self.proj(x) * mask, 2, axis=-1)
        z = (m_q + noise * mx.exp(logs_q)) * mask
        return Posterior(z, m_q, logs_q)


class ResidualCouplingLayer(nn.Module):
    """Shifts the second half of the channels by a function of the first (volume-preserving)."""

    def __init__(self, config: Config, norm_scheme: NormScheme):
        super().__init__()
        model, dims = config.model, config.reduced_dims
        half = model.inter_channels // 2
        self.pre = Conv1d(half, model.hidden_channels, 1)
        self.enc = WN(
            model.hidden_channels,
            dims.flow_kernel,
            dims.flow_wn_layers,
            model.gin_channels,
            norm_scheme,
        )
        self.post = keep_fp32(Conv1d(model.hidden_channels, half, 1))
        # Untrained, the layer is the identity.
        self.post["weight"] = mx.zeros_like(self.post["weight"])
        self.post["bias"] = mx.zeros_like(self.post["bias"])

    def __call__(
        self, x: mx.array, mask: mx.array | None, g: mx.array, reverse: bool = False
    ) -> mx.array:
        """`(B, T, C)`, mask `(B, T, 1)` and `(B, 1, G)` to `(B, T, C)`."""
        x0, x1 = mx.split(x, 2, axis=-1)
        y = self.pre(x0)
        shift = masked(self.post(self.enc(masked(y, mask), mask, g)), mask)
        x1 = masked(x1 - shift, mask) if reverse else shift + masked(x1, mask)
        return mx.concatenate([x0, x1], axis=-1)


class Flip(nn.Module):
    """Reverses the channels, so that the next coupling layer shifts the other half."""

    def __call__(
        self, x: mx.array, mask: mx.array | None, g: mx.array, reverse: bool = False
    ) -> mx.array:
        return x[..., ::-1]


class ResidualCouplingBlock(nn.Module):
    """Coupling layers at even indices, flips at odd ones."""

    def __init__(self, config: Config, norm_scheme: NormScheme):
        super().__init__()
        self.flows: list[nn.Module] = []
        for _ in range(config.reduced_dims.flow_n_flows):
            self.flows += [ResidualCouplingLayer(config, norm_scheme), Flip()]

    def __call__(
        self, x: mx.array, mask: mx.array | None, g: mx.array, reverse: bool = False
    ) -> mx.array:
        """`(B, T, C)`, mask `(B, T, 1)` and `(B, 1, G)` to `(B, T, C)`."""
        for flow in reversed(self.flows) if reverse else self.flows:
            x = flow(x, mask, g, reverse)
        return x
