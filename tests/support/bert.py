"""A tiny Chinese BERT in Hugging Face's form, with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_vits.checkpoints.state_dict import expected_shapes
from mlx_vits.checkpoints.tensors import write_tensors
from mlx_vits.models.bert import BertConfig, BertModel

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ",", ".", "你", "好", "世", "界", "豈"]
CONFIG = {
    "model_type": "bert",
    "vocab_size": 12,
    "hidden_size": 8,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}


def bert_tensors(config: dict[str, object] | None = None) -> dict[str, np.ndarray]:
    """Random weights of every layer under upstream's names, PyTorch's axes."""
    sizes = BertConfig.from_dict(config or CONFIG)
    model = BertModel(sizes, layers=sizes.num_hidden_layers)
    random = np.random.default_rng(0)
    return {
        f"bert.{name}": random.standard_normal(shape, dtype=np.float32) * 0.2
        for name, shape in expected_shapes(model).items()
    }


def write_bert(
    folder: Path,
    state: dict[str, np.ndarray] | None = None,
    *,
    config: dict[str, object] | None = None,
    vocabulary_file: str = "vocab.txt",
) -> Path:
    """Write `config.json`, the vocabulary and, where they are given, the weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config or CONFIG))
    if vocabulary_file == "vocab.txt":
        text = "\n".join(VOCABULARY) + "\n"
    else:
        table = {token: index for index, token in enumerate(VOCABULARY)}
        text = json.dumps({"model": {"type": "WordPiece", "vocab": table}})
    (folder / vocabulary_file).write_text(text, encoding="utf-8")
    if state is not None:
        tensors = {name: mx.array(array) for name, array in state.items()}
        write_tensors(folder / "model.safetensors", tensors)
    return folder
