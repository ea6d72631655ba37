"""Chinese BERT: characters in, features of each in its sentence out, for the T2S model.

Only the layers that GPT-SoVITS reads are built: its features are the third-last hidden state, so
the last two layers, the pooler and the masked language model's head are left out.

Source: Hugging Face `BertModel`; Cui et al. 2021, arXiv:1906.08101 (chinese-roberta-wwm-ext-large).
Axes: B batch, L tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_vits.errors import CheckpointError

UNUSED_LAYERS = 2  # after the hidden state that is read
# What a file states is believed up to here.
_LARGEST = 1 << 20
_MOST_LAYERS = 64


@dataclass(frozen=True)
class BertConfig:
    """Sizes under Hugging Face's keys; the defaults are chinese-roberta-wwm-ext-large's."""

    vocab_size: int = 21128
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "config") -> BertConfig:
        """Read Hugging Face's `config.json`.

        Raises:
            CheckpointError: it describes another kind of model, or sizes that none can have.
        """
        fixed = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
        for key, expected in fixed.items():
            if values.get(key, expected) != expected:
                raise CheckpointError(
                    f"{source}: {key} is {values[key]!r}; only the topology of "
                    f"chinese-roberta-wwm-ext-large ({key} = {expected!r}) is supported"
                )
        config = cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})
        sizes = [getattr(config, f.name) for f in fields(cls) if f.type == "int"]
        eps = config.layer_norm_eps
        is_sound = (
            all(type(size) is int and 0 < size <= _LARGEST for size in sizes)
            and UNUSED_LAYERS < config.num_hidden_layers <= _MOST_LAYERS
            and config.hidden_size % config.num_attention_heads == 0
            and type(eps) is float
            and 0 < eps < 1
        )
        if not is_sound:
            raise CheckpointError(
                f"{source}: its sizes describe no BERT; copy or download the file again"
            )
        return config


class _Embeddings(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, config.layer_norm_eps)

    def __call__(self, ids: mx.array) -> mx.array:
        positions = self.position_embeddings.weight[: ids.shape[1]]
        first_sentence = self.token_type_embeddings.weight[0]
        return self.LayerNorm(self.word_embeddings(ids) + positions + first_sentence)


class _SelfAttention(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        width = config.hidden_size
        self.n_heads = config.num_attention_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def __call__(self, x: mx.array) -> mx.array:
        batch, length, width = x.shape
        query, key, value = (
            layer(x).reshape(batch, length, self.n_heads, -1).swapaxes(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scale = query.shape[-1] ** -0.5
        y = mx.fast.scaled_dot_product_attention(query, key, value, scale=scale)
        return y.swapaxes(1, 2).reshape(batch, length, width)


class _AddNorm(nn.Module):
    """A projection, added to the residual and normed: `BertSelfOutput` and `BertOutput`."""

    def __init__(self, inputs: int, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(inputs, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def __call__(self, x: mx.array, residual: mx.array) -> mx.array:
        return self.LayerNorm(self.dense(x) + residual)


class _Attention(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.self = _SelfAttention(config)
        self.output = _AddNorm(config.hidden_size, config)

    def __call__(self, x: mx.array) -> mx.array:
        return self.output(self.self(x), x)


class _Intermediate(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)

    def __call__(self, x: mx.array) -> mx.array:
        return nn.gelu(self.dense(x))


class _Layer(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.attention = _Attention(config)
        self.intermediate = _Intermediate(config)
        self.output = _AddNorm(config.intermediate_size, config)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.attention(x)
        return self.output(self.intermediate(x), x)


class _Encoder(nn.Module):
    def __init__(self, config: BertConfig, layers: int):
        super().__init__()
        self.layer = [_Layer(config) for _ in range(layers)]


class BertModel(nn.Module):
    """Token ids to hidden states.

    Args:
        config: sizes.
        layers: how many to build, from the first; all but the last two by default.
    """

    def __init__(self, config: BertConfig | None = None, layers: int | None = None):
        super().__init__()
        self.config = config or BertConfig()
        if layers is None:
            layers = self.config.num_hidden_layers - UNUSED_LAYERS
        self.embeddings = _Embeddings(self.config)
        self.encoder = _Encoder(self.config, layers)

    def hidden_states(self, ids: mx.array) -> list[mx.array]:
        """Return what goes into the first layer and what comes out of each, `(B, L, C)`."""
        states = [self.embeddings(ids)]
        for layer in self.encoder.layer:
            states.append(layer(states[-1]))
        return states

    def __call__(self, ids: mx.array) -> mx.array:
        """Return the output of the last layer built, by default Hugging Face's hidden_states[-3].

        Args:
            ids: `(B, L)` of sentences of one length, without padding, [CLS] and [SEP] included;
                L is at most `max_position_embeddings`.
        """
        return self.hidden_states(ids)[-1]
