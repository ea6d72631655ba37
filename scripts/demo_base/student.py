"""The content encoder and its heads, as `distil` trains them.

The encoder is the product's `HubertModel`, run with few kernels. Axes: B excerpts, N samples,
S frames, C channels.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_vits.models.hubert import HubertModel
from scripts.demo_base.clips import LABELS
from scripts.demo_base.layers import convolve, gelu, heads, join
from scripts.demo_base.settings import MELODY_SIDES, Settings

BANDS = 80  # of the log-mel


class Student(nn.Module):
    """The content encoder and four heads."""

    def __init__(self, settings: Settings):
        super().__init__()
        width = settings.encoder.hidden_size
        self.encoder = HubertModel(settings.encoder)
        self.head = nn.Linear(width, settings.distil.directions)
        self.melody_head = nn.Linear(width, MELODY_SIDES)
        self.mel_head = nn.Linear(width, BANDS)
        self.phone_head = nn.Linear(width, LABELS)

    def __call__(self, wav: mx.array, hidden: mx.array) -> mx.array:
        """`(B, N)` and what is hidden `(B, S, 1)` to `(B, S, C)`."""
        x, model = wav[..., None], self.encoder
        for layer in model.feature_extractor.conv_layers:
            x = convolve(x, layer.conv["weight"], layer.conv.stride)
            x = gelu(layer.layer_norm(x) if "layer_norm" in layer else x)
        x = mx.where(hidden > 0, model.masked_spec_embed, model.feature_projection(x))
        encoder = model.encoder
        x = encoder.layer_norm(x + gelu(encoder.pos_conv_embed.conv(x)))
        for layer in encoder.layers:
            x = layer.layer_norm(x + _attend(layer.attention, x))
            up, down = layer.feed_forward.intermediate_dense, layer.feed_forward.output_dense
            x = layer.final_layer_norm(x + down(gelu(up(x))))
        return x


def _attend(attention: nn.Module, x: mx.array) -> mx.array:
    """Self-attention, its three projections side by side."""
    layers = [attention.q_proj, attention.k_proj, attention.v_proj]
    weight, bias = (
        mx.concatenate([layer[name] for layer in layers]) for name in ("weight", "bias")
    )
    query, key, value = heads(mx.addmm(bias, x, weight.T), 3, attention.n_heads)
    scale = query.shape[-1] ** -0.5
    y = mx.fast.scaled_dot_product_attention(query, key, value, scale=scale)
    return attention.out_proj(join(y))
