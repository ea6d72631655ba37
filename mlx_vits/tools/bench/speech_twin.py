"""Speaking in PyTorch, as a yardstick on the same machine: a cached T2S, and synthesis.

Our own small code, in fp32: a plain loop that keeps the keys and values of every layer, upstream's
draw (repetition penalty, top-k, exponential noise), and flow and decoder of `torch_twin.py`, weight
norm folded. It leaves out SoVITS's text side and style encoder. Axes: B batch, S sequence, C width.

`python -m mlx_vits.tools.bench.speech_twin` serves one benchmark, as `torch_twin.py` does.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from mlx_vits.tools.bench.speech import FIRST_CODES, SpeechWork
from mlx_vits.tools.bench.torch_twin import Synthesizer, clock, device_of, peak_bytes, use_device

_PENALTY, _TOP_K = 1.35, 15
_POSITIONS = 4000


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])

    def forward(
        self, x: torch.Tensor, cache: list[torch.Tensor], mask: torch.Tensor | None
    ) -> torch.Tensor:
        split = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, *kept = split.unbind()
        if cache:
            kept = [torch.cat(pair, 2) for pair in zip(cache, kept, strict=True)]
        cache[:] = kept
        mixed = F.scaled_dot_product_attention(query, kept[0], kept[1], mask)
        x = self.norms[0](x + self.out(mixed.transpose(1, 2).flatten(2)))
        return self.norms[1](x + self.down(F.relu(self.up(x))))


class Twin:
    """A T2S and a generator of a version's full size, with random weights."""

    def __init__(self, work: SpeechWork, device: str, *, tf32: bool):
        torch.manual_seed(0)
        use_device(device, tf32=tf32)
        self.work, self.device, self.config = work, device, work.t2s
        sizes, width = self.config, self.config.hidden_dim
        self.layers = nn.ModuleList(_Layer(width, sizes.head) for _ in range(sizes.n_layer))
        self.text = nn.Embedding(sizes.phoneme_vocab_size, width)
        self.audio = nn.Embedding(sizes.vocab_size, width)
        self.project = nn.Linear(1024, width)
        self.predict = nn.Linear(width, sizes.vocab_size, bias=False)
        self.positions = torch.randn(_POSITIONS, width)
        self.phones = torch.randint(0, sizes.phoneme_vocab_size, (1, work.phonemes))
        self.prompt = torch.randint(0, sizes.EOS, (1, work.prompt))
        self.bert = torch.randn(1, work.phonemes, 1024)
        rows = torch.arange(work.phonemes + work.prompt)
        self.mask = rows[None] <= torch.clamp(rows, min=work.phonemes - 1)[:, None]
        self.sovits = Synthesizer(work.sovits.config)
        for module in list(self.sovits.modules()):
            if parametrize.is_parametrized(module):
                parametrize.remove_parametrizations(module, "weight")
        self.style = torch.randn(1, work.sovits.config.model.gin_channels, 1)

    def run(self, part: str) -> float:
        """Seconds of a part of `SpeechParts`."""
        work = self.work
        begun = clock(self.device)
        with torch.inference_mode():
            if part in ("first", "sentence"):
                codes = FIRST_CODES if part == "first" else work.codes
                self._draw(1, codes)
                prior = torch.randn(1, work.sovits.config.model.inter_channels, 2 * codes)
                self.sovits.synthesize(prior, self.style)
            else:
                self._draw(work.together if part == "together" else 1, self._count(part))
        return clock(self.device) - begun

    def _count(self, part: str) -> int:
        return 1 if part == "prefill" else self.work.codes

    def _draw(self, rows: int, count: int) -> None:
        caches: list[list[torch.Tensor]] = [[] for _ in self.layers]
        prompt = self.prompt.expand(rows, -1)
        text = self.text(self.phones) + self.project(self.bert)
        text = (text + self.positions[: self.work.phonemes]).expand(rows, -1, -1)
        x = torch.cat([text, self.audio(prompt) + self.positions[: self.work.prompt]], 1)
        said, mask = prompt, self.mask
        for step in range(count):
            token = self._choose(self._read(x, caches, mask if step == 0 else None), said)
            token.tolist()  # upstream looks for EOS here
            said = torch.cat([said, token[:, None]], 1)
            x = (self.audio(token) + self.positions[self.work.prompt + step])[:, None]

    def _read(self, x: torch.Tensor, caches: list[Any], mask: Any) -> torch.Tensor:
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer(x, cache, mask)
        return self.predict(x[:, -1])

    def _choose(self, logits: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
        logits = logits[:, : self.config.EOS]
        scores = logits.gather(1, said)
        logits.scatter_(1, said, torch.where(scores < 0, scores * _PENALTY, scores / _PENALTY))
        least = logits.topk(_TOP_K).values[:, -1:]
        weights = torch.softmax(logits.masked_fill(logits < least, -torch.inf), -1)
        return (weights / torch.empty_like(weights).exponential_(1)).argmax(-1)


def serve() -> None:
    """Answers requests until its input ends; each names a part."""
    asked = json.loads(sys.stdin.readline())
    device, tf32 = device_of(asked.pop("device")), asked.pop("tf32")
    twin = Twin(SpeechWork(**asked), device, tf32=tf32)
    facts = {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": device}
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        seconds = twin.run(line.strip())
        print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes(device)}), flush=True)


if __name__ == "__main__":
    serve()
