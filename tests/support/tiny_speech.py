"""A base small enough to speak in a test: random weights, a reference, babble for speech."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

import mlx_vits
from mlx_vits.audio.files import write_wav
from mlx_vits.checkpoints.codebook import CODEBOOK_KEY, codebook_sha256
from mlx_vits.checkpoints.gpt_file import write_gpt
from mlx_vits.checkpoints.state_dict import state_of
from mlx_vits.config import T2SConfig
from mlx_vits.models.t2s import Text2SemanticDecoder
from mlx_vits.synthesis.companions import StoredReference, write_stored_reference
from tests.support.tiny import RATE, hum, make_base

WORDS = "Now, as all books are made."
CODES = 32  # entries of the tiny codebook


def make_speaking_base(folder: Path, *, most_codes: int = 21) -> Path:
    """Write a base whose every sentence has `most_codes`, as its T2S never ends one."""
    make_base(folder)
    sha256 = codebook_sha256(mlx_vits.load(folder).model)
    write_tiny_gpt(folder / "gpt", {CODEBOOK_KEY: sha256, "mute_code": 3}, most_codes=most_codes)
    write_wav(folder / "reference.wav", hum(3.5), RATE)
    write_stored_reference(folder, StoredReference("reference.wav", WORDS, "en"))
    return folder


def write_tiny_gpt(
    folder: Path,
    stated: Mapping[str, Any],
    *,
    codes: int = CODES,
    phonemes: int = 732,
    most_codes: int = 21,
    hidden: int = 64,
) -> Path:
    """Write a T2S model; `stated` is put beside `model` in its configuration."""
    mx.random.seed(5)
    width = {"hidden_dim": hidden, "embedding_dim": hidden, "head": 2, "n_layer": 1}
    counts = {"vocab_size": codes + 1, "EOS": codes, "phoneme_vocab_size": phonemes}
    config = T2SConfig.from_dict(
        {"model": width | counts, "data": {"max_sec": (most_codes - 1) / 50}, **stated}
    )
    write_gpt(folder, state_of(Text2SemanticDecoder(config)), config, info="")
    return folder


def change_json(path: Path, **values: Any) -> None:
    """Replace values of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
