"""The content encoder and its heads, as `distil` trains them.

The encoder is the product's `HubertModel`. Axes: B excerpts, N samples, S frames, C channels.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_vits.models.hubert import HubertModel
from scripts.demo_base.clips import LABELS
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
        encoder = self.encoder
        x = encoder.feature_projection(encoder.feature_extractor(wav[..., None]))
        return encoder.encoder(mx.where(hidden > 0, encoder.masked_spec_embed, x))
