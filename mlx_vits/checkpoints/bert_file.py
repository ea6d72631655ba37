"""A Chinese BERT from its folder in Hugging Face's form, ready to read texts.

Source: Hugging Face `BertForMaskedLM` and `BertTokenizer`; the folder is upstream's
`chinese-roberta-wwm-ext-large`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_vits.checkpoints.base import weights_home
from mlx_vits.checkpoints.contents import check_tensors
from mlx_vits.checkpoints.state_dict import load_state
from mlx_vits.checkpoints.tensors import read_tensors
from mlx_vits.checkpoints.torch_archive import read_torch_archive
from mlx_vits.config import read_json_table
from mlx_vits.errors import CheckpointError, DataError
from mlx_vits.models.bert import UNUSED_LAYERS, BertConfig, BertModel
from mlx_vits.system.text_files import read_text
from mlx_vits.text.character_tokenizer import CLS, SEP, UNK, CharacterTokenizer

BERT = "bert"  # its folder under `weights_home()`, shared by all bases
_WEIGHTS = ("weights.safetensors", "model.safetensors", "pytorch_model.bin")
_AGAIN = "copy or download it again"
_UNUSED = re.compile(r"cls\.|(bert\.)?(pooler\.|embeddings\.position_ids$)")
_LAYER = re.compile(r"(?:bert\.)?encoder\.layer\.([0-9]{1,3})\.")


class Bert:
    """Features of the characters of a normalised Chinese text.

    Attributes:
        model: the layers that are read.
        tokenizer: one token a character.
    """

    def __init__(self, model: BertModel, tokenizer: CharacterTokenizer):
        self.model = model
        self.tokenizer = tokenizer

    def __call__(self, text: str) -> mx.array:
        """Return the features of each character in its sentence.

        Args:
            text: of N characters, as the Chinese front end normalises it.

        Returns:
            `(N, C)`.

        Raises:
            DataError: it is longer than the model reads, 510 characters at the published size.
        """
        most = self.model.config.max_position_embeddings - 2
        if len(text) > most:
            raise DataError(
                f"The sentence {text[:20]!r}... has {len(text)} characters when read aloud, and "
                f"Chinese is read {most} at a time; split it."
            )
        return self.model(mx.array([self.tokenizer(text)]))[0, 1:-1]


def find_bert(version: str) -> Path:
    """Return the folder of the Chinese BERT that `mlx-vits download` fetches.

    Args:
        version: of the model that is to speak, for the command in the message.

    Raises:
        CheckpointError: it is not there.
    """
    folder = weights_home() / BERT
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder}: lacks chinese-roberta-wwm-ext-large, with which Chinese is read; "
            f"fetch it with `mlx-vits download {version}`"
        )
    return folder


def read_bert(folder: Path) -> Bert:
    """Read model and vocabulary.

    Args:
        folder: `config.json`, `vocab.txt` or `tokenizer.json`, and `weights.safetensors`,
            `model.safetensors` or `pytorch_model.bin`.

    Raises:
        CheckpointError: a file is missing or damaged, or the sizes do not fit each other.
    """
    config = read_bert_config(folder)
    tokenizer = _read_tokenizer(folder, config)
    path = _weights_file(folder)
    is_safetensors = path.suffix == ".safetensors"
    content = read_tensors(path).tensors if is_safetensors else read_torch_archive(path)
    model = BertModel(config)
    load_state(model, used_tensors(content, config, path), source=str(path), consume=True)
    return Bert(model, tokenizer)


def read_bert_config(folder: Path) -> BertConfig:
    """Read `config.json` of a BERT's folder.

    Raises:
        CheckpointError: it is missing, damaged, or another model's.
    """
    path = folder / "config.json"
    return BertConfig.from_dict(read_json_table(path), source=str(path))


def used_tensors(content: Any, config: BertConfig, source: Path) -> dict[str, Any]:
    """Return the tensors that `BertModel` has, under its names and in the file's precision.

    Args:
        content: what a file holds; a BertForMaskedLM's has parts that are not built.
        config: of the model.
        source: the file, for messages.

    Raises:
        CheckpointError: it is no BERT.
    """
    if not isinstance(content, dict):
        raise CheckpointError(f"{source}: is not a BERT, which is a table of tensors; {_AGAIN}")
    check_tensors(content, source)
    unused = range(config.num_hidden_layers - UNUSED_LAYERS, config.num_hidden_layers)
    layers = {name: _LAYER.match(name) for name in content}
    used = {
        _plain_name(name): content[name]
        for name, layer in layers.items()
        if not _UNUSED.match(name) and not (layer and int(layer[1]) in unused)
    }
    if not any(name.startswith("embeddings.") for name in used):
        raise CheckpointError(
            f"{source}: is not a BERT; give the weights of chinese-roberta-wwm-ext-large"
        )
    return used


def _plain_name(name: str) -> str:
    """A name without the prefix; files converted from TensorFlow call norms gamma and beta."""
    name = name.removeprefix("bert.")
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
    return name.replace("LayerNorm.beta", "LayerNorm.bias")


def _weights_file(folder: Path) -> Path:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder}: holds no weights ({', '.join(_WEIGHTS)}); {_AGAIN}")


def _read_tokenizer(folder: Path, config: BertConfig) -> CharacterTokenizer:
    path = folder / "vocab.txt"
    if path.is_file():
        vocabulary = _read_list(path)
    elif (path := folder / "tokenizer.json").is_file():
        vocabulary = _read_tokenizer_json(path)
    else:
        raise CheckpointError(f"{folder}: holds no vocab.txt or tokenizer.json; {_AGAIN}")
    for token in (CLS, SEP, UNK):
        if token not in vocabulary:
            raise CheckpointError(f"{path}: lacks {token}; {_AGAIN}")
    largest = max(vocabulary.values())
    if largest >= config.vocab_size:
        raise CheckpointError(
            f"{path}: has a token {largest}, but config.json says that the model knows "
            f"{config.vocab_size}; both must come from one model"
        )
    return CharacterTokenizer(vocabulary)


def _read_list(path: Path) -> dict[str, int]:
    try:
        lines = read_text(path, cure=_AGAIN).removesuffix("\n").split("\n")
    except DataError as error:
        raise CheckpointError(str(error)) from error
    return {token: index for index, token in enumerate(lines)}


def _read_tokenizer_json(path: Path) -> dict[str, int]:
    model = read_json_table(path).get("model")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    is_sound = isinstance(vocabulary, Mapping) and all(
        type(number) is int and number >= 0 for number in vocabulary.values()
    )
    if not vocabulary or not is_sound:
        raise CheckpointError(f"{path}: has no table model.vocab of tokens; {_AGAIN}")
    return dict(vocabulary)
