"""What GPT-SoVITS does with a `.ckpt` of its GPT stage: a stand-in for tests, in PyTorch.

    python -m tests.support.upstream_gpt NAME.ckpt PHONES CODES COUNT

Loads the file by upstream's rules and prints, as JSON, the `COUNT` most likely codes that follow
(EOS among them), given phonemes and a prompt's codes as comma-separated numbers. Written from the
description of upstream's formats alone, with nothing of mlx_vits, and run in a process of its own.

Source: GPT-SoVITS `inference_webui.py` (`change_gpt_weights`), `AR/models/t2s_lightning_module.py`,
`AR/models/t2s_model.py`, `AR/modules/embedding.py`.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import torch
from torch import nn


class _Embedding(nn.Module):
    def __init__(self, width: int, entries: int):
        super().__init__()
        self.word_embeddings = nn.Embedding(entries, width)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.word_embeddings(ids)


class _Position(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1))
        rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
        angles = torch.arange(4000)[:, None] * rates
        self._table = torch.stack([angles.sin(), angles.cos()], -1).reshape(4000, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.alpha * self._table[: x.shape[1]]


class _Layers(nn.Module):
    def __init__(self, width: int, heads: int, count: int):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, batch_first=True)
            for _ in range(count)
        )


class Text2SemanticDecoder(nn.Module):
    """The model, of the sizes that a file states."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        sizes = config["model"]
        width, vocabulary = sizes["hidden_dim"], sizes["vocab_size"]
        if sizes["EOS"] != vocabulary - 1:  # upstream asserts it
            raise SystemExit("EOS is not the last of the vocabulary")
        self.bert_proj = nn.Linear(1024, sizes["embedding_dim"])
        self.ar_text_embedding = _Embedding(width, sizes["phoneme_vocab_size"])
        self.ar_text_position = _Position(width)
        self.ar_audio_embedding = _Embedding(width, vocabulary)
        self.ar_audio_position = _Position(width)
        self.h = _Layers(width, sizes["head"], sizes["n_layer"])
        self.ar_predict_layer = nn.Linear(width, vocabulary, bias=False)

    def forward(self, phones: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Logits of the code to come."""
        bert = torch.zeros(*phones.shape, 1024)
        text = self.ar_text_position(self.ar_text_embedding(phones) + self.bert_proj(bert))
        x = torch.cat([text, self.ar_audio_position(self.ar_audio_embedding(codes))], 1)
        row, first = torch.arange(x.shape[1]), phones.shape[1]
        hidden = row[None] > torch.clamp(row, min=first - 1)[:, None]
        for layer in self.h.layers:
            x = layer(x, src_mask=hidden)
        return self.ar_predict_layer(x[:, -1])


class Module(nn.Module):
    """Prefixes all names with `model.`, as the Lightning module does."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        self.model = Text2SemanticDecoder(config)


def load(path: str) -> Module:
    """Open a file as upstream's inference does: strictly."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    float(content["config"]["data"]["max_sec"])  # which is read before the weights
    module = Module(content["config"])
    module.load_state_dict(content["weight"])
    return module.eval()


def main(path: str, phones: str, codes: str, count: str) -> None:
    """Print the codes that follow."""
    given, said = ([int(number) for number in text.split(",")] for text in (phones, codes))
    model, found = load(path).model, []
    with torch.inference_mode():
        for _ in range(int(count)):
            logits = model(torch.tensor([given]), torch.tensor([said + found]))
            found.append(int(logits[0].argmax()))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
