"""Which codebook a voice has: semantic codes mean nothing without it.

A T2S model chooses codes of one codebook, the one that its training data was encoded with. Upstream
freezes the codebook in fine-tuning, so every voice of a base shares it. Our own files of T2S models
state its sha256; upstream's belong to upstream's bases.
"""

from __future__ import annotations

import hashlib

import numpy as np

from mlx_vits.checkpoints.state_dict import state_of
from mlx_vits.models.vits import SynthesizerTrn

CODEBOOK_KEY = "codebook_sha256"  # in a T2S model's `config.json`
_TENSORS = ("ssl_proj.weight", "ssl_proj.bias", "quantizer.vq.layers.0._codebook.embed")


def codebook_sha256(model: SynthesizerTrn) -> str:
    """Return the sha256 of what turns features into codes, as fp16 in PyTorch's axes."""
    state = state_of(model)
    digest = hashlib.sha256()
    for name in _TENSORS:
        digest.update(np.asarray(state[name]).astype(np.float16).tobytes())
    return digest.hexdigest()
