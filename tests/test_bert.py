"""Chinese BERT against Hugging Face's, and the folders that it is read from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_vits.checkpoints.bert_file import find_bert, read_bert
from mlx_vits.checkpoints.state_dict import expected_shapes, load_state
from mlx_vits.checkpoints.tensors import write_tensors
from mlx_vits.checkpoints.torch_archive import write_torch_archive
from mlx_vits.errors import CheckpointError, DataError
from mlx_vits.models.bert import BertConfig, BertModel
from tests.support.bert import CONFIG, VOCABULARY, bert_tensors, write_bert
from tests.support.goldens import assert_close, tensors, values

ATOL = 1e-4  # the golden's own; fp32 rounding is 1e-6


def test_every_hidden_state() -> None:
    config = BertConfig.from_dict(values("bert", "config.json"))
    weights = {
        name.removeprefix("bert."): array
        for name, array in tensors("bert", "weights.safetensors").items()
    }
    data = tensors("bert", "io.safetensors")
    every = BertModel(config, layers=config.num_hidden_layers)
    load_state(every, weights, source="bert")
    ids = data["in/input_ids"].reshape(1, -1)
    for index, state in enumerate(every.hidden_states(ids)):
        assert_close(state, data[f"out/hidden{index}"].reshape(state.shape), atol=ATOL)


def test_the_features_that_are_read(tmp_path: Path) -> None:
    """The third-last hidden state, of a file that holds all layers."""
    data = tensors("bert", "io.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(values("bert", "config.json")))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), tensors("bert", "weights.safetensors"))
    ids = data["in/input_ids"].reshape(-1).tolist()
    marks = {ids[0]: "[CLS]", ids[-1]: "[SEP]", 119: "[UNK]"}
    text = "".join(chr(0x4E00 + i) for i in ids[1:-1])
    tokens = [marks.get(i, chr(0x4E00 + i)) for i in range(120)]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    features = read_bert(tmp_path)(text)
    assert_close(features, data["out/char_feature"], atol=ATOL)


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    return bert_tensors()


def test_upstreams_file_and_safetensors_are_one_model(
    state: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """A BertForMaskedLM in half precision, with head, pooler and position ids."""
    halves = {name: array.astype(np.float16) for name, array in state.items()}
    others = {
        "bert.embeddings.position_ids": np.arange(16)[None],
        "bert.pooler.dense.weight": np.ones((8, 8), np.float16),
        "cls.predictions.decoder.weight": halves["bert.embeddings.word_embeddings.weight"],
    }
    theirs = write_bert(tmp_path / "theirs", vocabulary_file="tokenizer.json")
    write_torch_archive(theirs / "pytorch_model.bin", halves | others)
    ours = write_bert(tmp_path / "ours")
    write_tensors(
        ours / "model.safetensors",
        {name.removeprefix("bert."): mx.array(array) for name, array in halves.items()},
    )
    text = "你好，龘世界"
    found = read_bert(theirs)(text)
    assert found.shape == (6, CONFIG["hidden_size"])
    assert mx.array_equal(found, read_bert(ours)(text))


def test_a_character_has_one_token(state: dict[str, np.ndarray], tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "bert", state)
    ids = read_bert(folder).tokenizer("你龘, 好\uf900")
    known = VOCABULARY.index
    unknown = known("[UNK]")
    # U+F900 is a compatibility form of 豈.
    expected = [known("你"), unknown, known(","), unknown, known("好"), known("豈")]
    assert ids == [known("[CLS]"), *expected, known("[SEP]")]


def test_a_sentence_that_is_too_long_is_named(state: dict[str, np.ndarray], tmp_path: Path) -> None:
    bert = read_bert(write_bert(tmp_path / "bert", state))
    assert bert("你" * 14).shape[0] == 14
    with pytest.raises(DataError, match=r"has 15 characters when read aloud.* 14 at a time"):
        bert("你" * 15)


def _without(state: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {key: array for key, array in state.items() if key != name}


def _with(state: dict[str, np.ndarray], name: str, array: Any) -> dict[str, np.ndarray]:
    return state | {name: array}


_BIAS = "bert.encoder.layer.0.output.dense.bias"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: _without(s, _BIAS), r"lacks encoder\.layer\.0\.output\.dense\.bias"),
        (lambda s: _with(s, _BIAS, np.zeros(9, np.float32)), r"has shape \[9\], this model needs"),
        (lambda s: _with(s, _BIAS, np.full(8, np.nan, np.float32)), "bias holds NaN or infinity"),
        (lambda s: _with(s, "bert.extra.weight", np.zeros(1)), r"has not: extra\.weight"),
        (
            lambda s: _with(s, "bert.encoder.layer.4.output.dense.bias", np.zeros(8)),
            r"has not: encoder\.layer\.4",  # a layer more than config.json says
        ),
        (lambda s: {"weight": np.zeros(3, np.float32)}, "is not a BERT; give the weights"),
        (lambda s: [1, 2], "is not a BERT, which is a table of tensors"),
    ],
)
def test_bad_weights_are_named(
    change: Any, words: str, state: dict[str, np.ndarray], tmp_path: Path
) -> None:
    folder = write_bert(tmp_path / "bert")
    write_torch_archive(folder / "pytorch_model.bin", change(state))
    with pytest.raises(CheckpointError, match=rf"pytorch_model\.bin: .*{words}"):
        read_bert(folder)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", None, "config.json: cannot be read"),
        ("config.json", '{"hidden_act": "relu"}', "hidden_act is 'relu'; only the topology"),
        ("config.json", '{"num_hidden_layers": 2}', "its sizes describe no BERT"),
        ("config.json", '{"hidden_size": "wide"}', "its sizes describe no BERT"),
        ("vocab.txt", None, r"holds no vocab\.txt or tokenizer\.json"),
        ("vocab.txt", "[CLS]\n[SEP]\n", r"vocab\.txt: lacks \[UNK\]"),
        ("vocab.txt", "[CLS]\n[SEP]\n[UNK]\n" + "a\n" * 99, r"has a token 101, but config\.json"),
        ("tokenizer.json", '{"model": {}}', r"tokenizer\.json: has no table model\.vocab"),
        ("model.safetensors", None, "holds no weights"),
        ("model.safetensors", "cut", r"model\.safetensors: "),
    ],
)
def test_bad_files_are_named(
    name: str, content: str | None, words: str, state: dict[str, np.ndarray], tmp_path: Path
) -> None:
    folder = write_bert(tmp_path / "bert", state)
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_text(content)
    if name == "tokenizer.json":
        (folder / "vocab.txt").unlink()
    with pytest.raises(CheckpointError, match=words):
        read_bert(folder)


def test_a_missing_model_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLX_VITS_HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"fetch it with `mlx-vits download v2Pro`$"):
        find_bert("v2Pro")
    write_bert(tmp_path / "bert")
    assert find_bert("v2Pro") == tmp_path / "bert"


def test_the_published_size() -> None:
    """In half precision with the head, upstream's file of 651,225,145 bytes but for its zip."""
    every = nn.utils.tree_flatten(BertModel(layers=24).parameters())
    head = 1024 * 1024 + 1024 + 2 * 1024 + 21128
    count = sum(array.size for _, array in every) + head
    assert 0 < 651_225_145 - 2 * count < 400 * len(every)


@pytest.mark.slow
def test_the_published_width_as_pytorch_has_it() -> None:
    """PyTorch's own post-norm encoder layers, with 16 heads of 64."""
    torch = pytest.importorskip("torch", reason="needs the extra `torch`")
    config = BertConfig.from_dict({"num_hidden_layers": 6, "vocab_size": 50})
    random = np.random.default_rng(0)
    model = BertModel(config)
    state = {
        name: random.standard_normal(shape, dtype=np.float32) * (0.2 if len(shape) == 1 else 0.03)
        for name, shape in expected_shapes(model).items()
    }
    load_state(model, state, source="recipe")
    ids = random.integers(0, 50, (1, 40))
    states = model.hidden_states(mx.array(ids))
    x = torch.tensor(np.array(states[0]))
    for index, ours in enumerate(states[1:]):
        layer = torch.nn.TransformerEncoderLayer(
            1024, 16, 4096, dropout=0.0, activation="gelu", layer_norm_eps=1e-12, batch_first=True
        ).eval()
        own = {
            name.removeprefix(f"encoder.layer.{index}."): torch.tensor(array)
            for name, array in state.items()
            if name.startswith(f"encoder.layer.{index}.")
        }
        named = {
            "self_attn.out_proj": "attention.output.dense",
            "norm1": "attention.output.LayerNorm",
            "linear1": "intermediate.dense",
            "linear2": "output.dense",
            "norm2": "output.LayerNorm",
        }
        theirs = {
            f"{to}.{kind}": own[f"{name}.{kind}"]
            for to, name in named.items()
            for kind in ("weight", "bias")
        }
        for kind in ("weight", "bias"):
            parts = [own[f"attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            theirs[f"self_attn.in_proj_{kind}"] = torch.cat(parts)
        layer.load_state_dict(theirs)
        with torch.no_grad():
            x = layer(x)
        assert_close(ours, x.numpy(), atol=ATOL)
