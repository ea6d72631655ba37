"""Train the demo's T2S from phonemes and semantic codes, with upstream's architecture reduced.

    python scripts/demo_t2s.py prepare CORPUS data.npz
    python scripts/demo_t2s.py train data.npz weights/demo/base/gpt --minutes 8

CORPUS has `rows.tsv` (columns id, voice, text_id, text), `codes.npz` (ids, lengths, codes; made
with the demo base's own content encoder and codebook) and `audio_0.tar` of Opus clips.

A prompted T2S continues a voice: its input is the reference's text and codes, and the new text. So
half of the training rows are several sentences of one voice, joined, with the codes of a short
silence in between, as the silence that is appended to a reference has them. Some input codes are
replaced by others at random, which teaches the model to go on after a bad draw.
"""

from __future__ import annotations

import csv
import io
import json
import math
import tarfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import typer

import mlx_vits
from mlx_vits.audio.files import resample
from mlx_vits.checkpoints.codebook import CODEBOOK_KEY, codebook_sha256
from mlx_vits.config import T2SConfig
from mlx_vits.models.t2s import Text2SemanticDecoder
from mlx_vits.synthesis.fitting import LANGUAGES_KEY, MUTE_KEY
from mlx_vits.text import clean_text, phonemes_to_ids

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import soundfile
from mlx.utils import tree_flatten, tree_map

EOS = 1024
MUTE_CODE = 742  # of the codes of silence the one that is most like the others
TAIL_CODES = 15  # of 0.6 s of silence
TAILS = 150  # clips whose trailing silence is encoded
SIZES = {"embedding_dim": 256, "hidden_dim": 256, "head": 4, "n_layer": 6}
POSITIONS_PER_BATCH = 16384  # phonemes and codes
LARGEST_CODES = 500  # of a joined row, 20 s
PEAK_RATE, LEAST_RATE, WARM_UP_STEPS = 1e-3, 2e-5, 300
REPLACED = 0.05  # share of input codes
HELD_OUT = 40  # one text in so many

app = typer.Typer(add_completion=False)


class Row(NamedTuple):
    """Phonemes and codes of one training row."""

    phones: np.ndarray
    codes: np.ndarray


@app.command()
def prepare(corpus: Path, output: Path) -> None:
    """Write phonemes, codes and voices of all sentences, and the codes of trailing silences."""
    with (corpus / "rows.tsv").open(encoding="utf-8", newline="") as file:
        table = {r["id"]: r for r in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}
    stored = np.load(corpus / "codes.npz")
    names = [f"{number:05d}" for number in stored["ids"]]
    read = [clean_text(table[name]["text"], "en", "v2").phonemes for name in names]
    phones = [phonemes_to_ids(symbols, "v2") for symbols in read]
    _, voices = np.unique([table[name]["voice"] for name in names], return_inverse=True)
    _, texts = np.unique([table[name]["text_id"] for name in names], return_inverse=True)
    np.savez(
        output,
        phones=np.concatenate(phones).astype(np.int16),
        phone_counts=np.array([len(row) for row in phones]),
        codes=stored["codes"],
        code_counts=stored["lengths"],
        voices=voices,
        texts=texts,
        tails=_silences(corpus / "audio_0.tar"),
    )


def _silences(archive: Path) -> np.ndarray:
    """Codes `(TAILS, TAIL_CODES)` of the 0.6 s of silence that follow a clip."""
    voice = mlx_vits.load("demo")
    encoder = voice.content_encoder
    assert encoder is not None
    found: list[np.ndarray] = []
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name.endswith(".opus") else None
            if file is None:
                continue
            wav, rate = soundfile.read(io.BytesIO(file.read()), dtype="float32")
            wav = np.concatenate([resample(wav, rate, 16000), np.zeros(9600, np.float32)])
            features = encoder(mx.array(wav[None])).swapaxes(1, 2)
            found.append(voice.extract_codes(features).ravel()[-TAIL_CODES:])
            if len(found) == TAILS:
                break
    return np.stack(found).astype(np.int16)


class Sentences:
    """The prepared sentences, joined into rows and batches."""

    def __init__(self, path: Path, seed: int):
        data = np.load(path)
        ends = np.cumsum(data["phone_counts"])[:-1], np.cumsum(data["code_counts"])[:-1]
        phones, codes = np.split(data["phones"], ends[0]), np.split(data["codes"], ends[1])
        self._rows = [Row(p, c) for p, c in zip(phones, codes, strict=True)]
        self._tails, self._voices = data["tails"], data["voices"]
        self._random = np.random.default_rng(seed)
        is_held_out = data["texts"] % HELD_OUT == 0
        self.held_out = [self._rows[i] for i in np.flatnonzero(is_held_out)]
        self._of_voice: dict[int, list[int]] = defaultdict(list)
        for index in np.flatnonzero(~is_held_out):
            self._of_voice[int(self._voices[index])].append(int(index))
        self._training = np.flatnonzero(~is_held_out)

    def epoch(self) -> list[Row]:
        """Every training sentence once or more: alone, or after others of its voice."""
        return [self._join(int(i)) for i in self._random.permutation(self._training)]

    def _join(self, index: int) -> Row:
        row, others = self._rows[index], self._of_voice[int(self._voices[index])]
        if len(others) < 2 or self._random.random() < 0.4:
            return row
        for other in self._random.permutation(others)[: self._random.integers(1, 4)]:
            before = self._rows[int(other)]
            tail = self._tails[self._random.integers(len(self._tails))]
            tail = tail[: self._random.integers(TAIL_CODES + 1)]
            if len(before.codes) + len(row.codes) + len(tail) > LARGEST_CODES or other == index:
                continue
            row = Row(
                np.concatenate([before.phones, row.phones]),
                np.concatenate([before.codes, tail, row.codes]),
            )
        return row


class Batch(NamedTuple):
    """Training rows put together.

    Attributes:
        phones: `(B, L)`, padded on the left.
        padding: `(B,)`, how many of them are padding.
        codes: `(B, T)`, padded on the right.
        targets, weights: `(B, T + 1)`, the codes and EOS; weight 0 for padding.
    """

    phones: mx.array
    padding: mx.array
    codes: mx.array
    targets: mx.array
    weights: mx.array


def batches(rows: list[Row], random: np.random.Generator | None) -> Iterator[Batch]:
    """Rows of like length put together, in random order; some input codes replaced."""
    rows = sorted(rows, key=lambda row: len(row.codes))
    groups: list[list[Row]] = [[]]
    for row in rows:
        width = _padded(len(row.codes) + 1, 64) + _padded(len(row.phones), 32)
        if groups[-1] and (len(groups[-1]) + 1) * width > POSITIONS_PER_BATCH:
            groups.append([])
        groups[-1].append(row)
    order = random.permutation(len(groups)) if random else range(len(groups))
    for number in order:
        yield _collate(groups[number], random)


def _padded(count: int, step: int) -> int:
    return -(-count // step) * step


def _collate(rows: list[Row], random: np.random.Generator | None) -> Batch:
    phone_width = _padded(max(len(row.phones) for row in rows), 32)
    code_width = _padded(max(len(row.codes) for row in rows) + 1, 64) - 1
    count = len(rows)
    phones = np.zeros((count, phone_width), np.int32)
    codes = np.full((count, code_width), EOS, np.int32)
    targets = np.full((count, code_width + 1), EOS, np.int32)
    weights = np.zeros((count, code_width + 1), np.float32)
    for number, row in enumerate(rows):
        phones[number, phone_width - len(row.phones) :] = row.phones
        codes[number, : len(row.codes)] = targets[number, : len(row.codes)] = row.codes
        weights[number, : len(row.codes) + 1] = 1
    if random:
        is_replaced = random.random(codes.shape) < REPLACED
        codes = np.where(is_replaced, random.integers(EOS, size=codes.shape), codes)
    padding = np.array([phone_width - len(row.phones) for row in rows], np.int32)
    return Batch(*(mx.array(a) for a in (phones, padding, codes, targets, weights)))


def _loss(model: Text2SemanticDecoder, batch: Batch, key: mx.array | None = None) -> mx.array:
    """Summed cross-entropy over codes and EOS."""
    logits = model(batch.phones, batch.codes, padding=batch.padding, key=key)
    return (nn.losses.cross_entropy(logits, batch.targets) * batch.weights).sum()


def _held_out_loss(model: Text2SemanticDecoder, rows: list[Row]) -> float:
    """Mean cross-entropy of a code."""
    total = count = 0.0
    for batch in batches(rows, None):
        total += _loss(model, batch).item()
        count += batch.weights.sum().item()
    return total / count


@app.command()
def train(data: Path, output: Path, minutes: float = 8.0, seed: int = 0) -> None:
    """Train for so long, and keep the weights that are best on held-out sentences."""
    sentences = Sentences(data, seed)
    random = np.random.default_rng(seed)
    mx.random.seed(seed)
    model = Text2SemanticDecoder(T2SConfig(**SIZES, max_sec=54))
    model.bert_proj.weight = mx.zeros_like(model.bert_proj.weight)  # English has no features
    model.bert_proj.freeze()
    count = sum(array.size for _, array in tree_flatten(model.parameters()))
    print(f"{count:,} weights, {len(sentences.held_out)} sentences held out")
    optimizer = optim.AdamW(PEAK_RATE, betas=[0.9, 0.98], weight_decay=0.05, bias_correction=True)
    gradient = nn.value_and_grad(model, _loss)
    key = mx.random.key(seed)
    begun, step, best, judged = time.monotonic(), 0, math.inf, 0.0
    while (passed := (time.monotonic() - begun) / 60 / minutes) < 1:
        for batch in batches(sentences.epoch(), random):
            passed = (time.monotonic() - begun) / 60 / minutes
            if passed >= 1:
                break
            cosine = 0.5 * (1 + math.cos(math.pi * passed))
            rate = LEAST_RATE + (PEAK_RATE - LEAST_RATE) * cosine
            optimizer.learning_rate = rate * min(1, (step + 1) / WARM_UP_STEPS)
            key, used = mx.random.split(key)
            loss, gradients = gradient(model, batch, used)
            gradients = tree_map(lambda g, n=batch.weights.sum(): g / n, gradients)
            gradients, _ = optim.clip_grad_norm(gradients, 1.0)
            optimizer.update(model, gradients)
            mx.eval(model.parameters(), optimizer.state, loss)
            step += 1
        if passed - judged > 0.04 or passed >= 1:
            judged, held_out = passed, _held_out_loss(model, sentences.held_out)
            now = loss.item() / batch.weights.sum().item()
            losses = f"loss {now:.3f}  held out {held_out:.3f}"
            print(f"{passed:4.0%}  step {step}  {losses}", flush=True)
            if held_out < best:
                best = held_out
                _write(model, output)


def _write(model: Text2SemanticDecoder, output: Path) -> None:
    """Write the T2S, with what `speak` wants to know of it."""
    output.mkdir(parents=True, exist_ok=True)
    weights = {n: a.astype(mx.float16) for n, a in tree_flatten(model.parameters())}
    mx.save_safetensors(str(output / "weights.safetensors"), weights)
    stated = {
        CODEBOOK_KEY: codebook_sha256(mlx_vits.load("demo").model),
        LANGUAGES_KEY: ["en"],
        MUTE_KEY: MUTE_CODE,
    }
    text = json.dumps(model.config.to_dict() | stated, indent=1)
    (output / "config.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    app()
