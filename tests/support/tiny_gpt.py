"""A GPT small enough to build in a test, with random weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx

from mlx_vits.checkpoints.base import find_base, load_generator
from mlx_vits.checkpoints.codebook import CODEBOOK_KEY, codebook_sha256
from mlx_vits.checkpoints.gpt_file import CONFIG, GPT_FOLDER, write_gpt
from mlx_vits.checkpoints.state_dict import state_of
from mlx_vits.config import T2SConfig
from mlx_vits.models.t2s import Text2SemanticDecoder
from mlx_vits.synthesis.fitting import LANGUAGES_KEY, MUTE_KEY

EOS = 24


def add_gpt(base: Path, *, languages: Sequence[str] = ("en",)) -> None:
    """Give a base a T2S that has heard some languages and says at most two seconds."""
    generator = load_generator(find_base(str(base)).read_generator())
    model = tiny_gpt(max_sec=2.0, codes=generator.config.reduced_dims.codebook_size)
    write_gpt(base / GPT_FOLDER, state_of(model), model.config, info="tiny")
    path = base / GPT_FOLDER / CONFIG
    stated = {CODEBOOK_KEY: codebook_sha256(generator), LANGUAGES_KEY: list(languages)}
    stated |= {MUTE_KEY: 0}
    path.write_text(json.dumps(json.loads(path.read_text()) | stated))


def tiny_gpt(
    *, phonemes: int = 732, max_sec: float = 54.0, codes: int = EOS
) -> Text2SemanticDecoder:
    """Of 2 layers."""
    mx.random.seed(5)
    width = {"hidden_dim": 64, "embedding_dim": 64, "head": 2, "n_layer": 2}
    sizes = {"vocab_size": codes + 1, "EOS": codes, "phoneme_vocab_size": phonemes}
    model = Text2SemanticDecoder(
        T2SConfig.from_dict({"model": width | sizes, "data": {"max_sec": max_sec}})
    )
    mx.eval(model.parameters())
    return model
