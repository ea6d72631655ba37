"""A GPT small enough to build in a test, with random weights."""

from __future__ import annotations

import mlx.core as mx

from mlx_vits.config import T2SConfig
from mlx_vits.models.t2s import Text2SemanticDecoder

EOS = 24


def tiny_gpt(*, phonemes: int = 732, max_sec: float = 54.0) -> Text2SemanticDecoder:
    """Of 2 layers and 24 codes."""
    mx.random.seed(5)
    width = {"hidden_dim": 64, "embedding_dim": 64, "head": 2, "n_layer": 2}
    codes = {"vocab_size": EOS + 1, "EOS": EOS, "phoneme_vocab_size": phonemes}
    model = Text2SemanticDecoder(
        T2SConfig.from_dict({"model": width | codes, "data": {"max_sec": max_sec}})
    )
    mx.eval(model.parameters())
    return model
