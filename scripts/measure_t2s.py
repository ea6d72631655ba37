"""How fast a full-size T2S draws codes: prefill, tokens a second, beside a cached PyTorch loop.

    python scripts/measure_t2s.py [--batch 1 --batch 8] [--bits 8] [--compare torch]

Random weights, 100 phonemes and 100 prompt codes, drawing included (repetition penalty, top-k 15).
PyTorch runs in a process of its own: MLX is many times slower where torch was imported first. Each
figure is the median of the repetitions; real time needs 25 tokens a second.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer

PHONES, PROMPT = 100, 100
WIDTH, HEADS, LAYERS, CODES, SYMBOLS = 512, 16, 24, 1025, 732
PENALTY, TOP_K = 1.35, 15


def _report(
    prefills: list[float], decodings: list[float], batch: int, tokens: int
) -> dict[str, Any]:
    return {
        "batch": batch,
        "prefill_ms": round(1e3 * median(prefills), 1),
        "tokens_per_s": round(batch * (tokens - 1) / median(decodings), 1),
    }


def measure_mlx(batch: int, tokens: int, repeat: int, bits: int) -> dict[str, Any]:
    """Of `generation.stream`'s own loop, from the first code to the last."""
    import mlx_vits  # noqa: F401  (before mlx, as it chooses the BLAS)

    import mlx.core as mx

    from mlx_vits.config import T2SConfig
    from mlx_vits.models.t2s import Text2SemanticDecoder
    from mlx_vits.synthesis import generation
    from mlx_vits.synthesis.gpt import GPT
    from mlx_vits.synthesis.sampling import Sampling

    mx.random.seed(0)
    model = Text2SemanticDecoder(T2SConfig())
    row = mx.zeros((1, WIDTH))  # EOS, which is then never among the best
    model.ar_predict_layer.weight = mx.concatenate([model.ar_predict_layer.weight[:-1], row])
    gpt = GPT(model)
    if bits:
        gpt.quantize(bits)
    phones = mx.random.randint(0, SYMBOLS, (PHONES,))
    bert = mx.random.normal((PHONES, 1024))
    prompt = mx.random.randint(0, CODES - 1, (PROMPT,))
    requests = [generation.Request(phones, bert, seed) for seed in range(batch)]
    prefills, decodings = [], []
    for _ in range(repeat + 1):
        begun = time.perf_counter()
        generation.generate_batch(gpt.model, requests, prompt, Sampling(TOP_K), max_tokens=1)
        first = time.perf_counter() - begun
        begun = time.perf_counter()
        drawn = generation.generate_batch(
            gpt.model, requests, prompt, Sampling(TOP_K), max_tokens=tokens
        )
        whole = time.perf_counter() - begun
        assert all(len(one.codes) == tokens for one in drawn)
        prefills.append(first)
        decodings.append(whole - first)
    return _report(prefills[1:], decodings[1:], batch, tokens)


def measure_torch(batch: int, tokens: int, repeat: int) -> dict[str, Any]:
    """Of a plain loop with the keys and values of every layer kept."""
    import torch
    import torch.nn.functional as F

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)

    def draw(*shape: int) -> Any:
        return (torch.randn(*shape) / shape[-1] ** 0.5).to(device)

    layers = [
        {
            "qkv": draw(3 * WIDTH, WIDTH),
            "out": draw(WIDTH, WIDTH),
            "up": draw(4 * WIDTH, WIDTH),
            "down": draw(WIDTH, 4 * WIDTH),
        }
        for _ in range(LAYERS)
    ]
    bias = {n: torch.zeros(n, device=device) for n in (WIDTH, 3 * WIDTH, 4 * WIDTH)}
    ones = torch.ones(WIDTH, device=device)
    text, audio, positions = draw(SYMBOLS, WIDTH), draw(CODES, WIDTH), draw(4000, WIDTH)
    predict, project = draw(CODES, WIDTH), draw(WIDTH, 1024)

    def run(x: Any, caches: list[Any], mask: Any) -> Any:
        for number, layer in enumerate(layers):
            q, k, v = F.linear(x, layer["qkv"], bias[3 * WIDTH]).chunk(3, -1)
            q, k, v = (
                one.view(batch, -1, HEADS, WIDTH // HEADS).transpose(1, 2) for one in (q, k, v)
            )
            if caches[number] is not None:
                k = torch.cat([caches[number][0], k], 2)
                v = torch.cat([caches[number][1], v], 2)
            caches[number] = (k, v)
            mixed = F.scaled_dot_product_attention(q, k, v, mask)
            mixed = mixed.transpose(1, 2).reshape(batch, -1, WIDTH)
            x = x + F.linear(mixed, layer["out"], bias[WIDTH])
            x = F.layer_norm(x, (WIDTH,), ones, bias[WIDTH])
            hidden = F.relu(F.linear(x, layer["up"], bias[4 * WIDTH]))
            x = x + F.linear(hidden, layer["down"], bias[WIDTH])
            x = F.layer_norm(x, (WIDTH,), ones, bias[WIDTH])
        return F.linear(x[:, -1], predict)

    def choose(logits: Any, said: Any) -> Any:
        logits = logits[:, : CODES - 1]
        scores = logits.gather(1, said)
        logits.scatter_(1, said, torch.where(scores < 0, scores * PENALTY, scores / PENALTY))
        least = logits.topk(TOP_K).values[:, -1:]
        weights = torch.softmax(logits.masked_fill(logits < least, -torch.inf), -1)
        return (weights / torch.empty_like(weights).exponential_(1)).argmax(-1)

    phones = torch.randint(0, SYMBOLS, (batch, PHONES), device=device)
    prompt = torch.randint(0, CODES - 1, (batch, PROMPT), device=device)
    bert = torch.randn(batch, PHONES, 1024, device=device)
    rows = torch.arange(PHONES + PROMPT, device=device)
    mask = rows[None] <= torch.clamp(rows, min=PHONES - 1)[:, None]
    prefills, decodings = [], []
    with torch.inference_mode():
        for _ in range(repeat + 1):
            begun = time.perf_counter()
            caches: list[Any] = [None] * LAYERS
            read = text[phones] + F.linear(bert, project) + positions[:PHONES]
            x = torch.cat([read, audio[prompt] + positions[:PROMPT]], 1)
            said = prompt
            token = choose(run(x, caches, mask), said)
            token.tolist()
            prefills.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            for step in range(tokens - 1):
                said = torch.cat([said, token[:, None]], 1)
                x = (audio[token] + positions[PROMPT + step])[:, None]
                token = choose(run(x, caches, None), said)
                token.tolist()  # upstream looks for EOS here
            decodings.append(time.perf_counter() - begun)
    return _report(prefills[1:], decodings[1:], batch, tokens)


def main(
    batch: Annotated[list[int] | None, typer.Option(help="Texts at once; may be repeated.")] = None,
    tokens: Annotated[int, typer.Option(help="Codes to draw.")] = 100,
    repeat: Annotated[int, typer.Option(help="Repetitions after the first.")] = 3,
    bits: Annotated[int, typer.Option(help="8 or 4: of the weights; 0 for fp32.")] = 0,
    compare: Annotated[str, typer.Option(help="torch: measure PyTorch as well.")] = "",
    only_torch: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Print a line of JSON for each batch size."""
    for size in batch or [1, 8]:
        if only_torch:
            print(json.dumps({"of": "torch"} | measure_torch(size, tokens, repeat)), flush=True)
            continue
        ours = measure_mlx(size, tokens, repeat, bits)
        print(json.dumps({"of": "mlx", "bits": bits} | ours), flush=True)
        if compare == "torch":
            options = ["--batch", str(size), "--tokens", str(tokens), "--repeat", str(repeat)]
            command = [sys.executable, __file__, "--only-torch", *options]
            found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            theirs = json.loads(found.splitlines()[-1])
            ratio = np.round(ours["tokens_per_s"] / theirs["tokens_per_s"], 2)
            print(json.dumps(theirs | {"ours_of_theirs": float(ratio)}), flush=True)


if __name__ == "__main__":
    typer.run(main)
