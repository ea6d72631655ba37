"""Make `mlx_vits/text/data/english_lts.npz`, the guesser of unknown English words.

    python scripts/make_english_lts.py [OUT]

Every twentieth word of the CMU dictionary (by a hash) is held out: never aligned, never trained
on. Letters and phonemes of the others are aligned by expectation maximisation, each letter with
zero to two phonemes; a small convolutional network then learns each letter's phonemes from the
whole word. Weights are stored in eight bits, and the errors printed at the end are those of the
stored file on the held-out words. About 25 minutes on two cores; the same on every run of one
machine (seeded).
"""

from __future__ import annotations

import math
import random
import sys
import zlib
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from mlx_vits._backend import BLAS  # isort: skip  (has to come before mlx is imported)
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten

from mlx_vits.text.english_words import dictionary
from mlx_vits.text.letter_to_sound import KERNEL, letter_to_sound

OUT = Path(__file__).resolve().parents[1] / "mlx_vits/text/data/english_lts.npz"
SEED = 1
CHANNELS = 96
DILATIONS = (1, 1, 2, 1)
DROPOUT = 0.1
EPOCHS = 20
BATCH = 256
PEAK_RATE = 2e-3
ALIGNMENT_WORDS = 20_000  # for the expectation maximisation; all words are aligned with its result
RARE = 4  # a letter's phonemes seen less often than this are no class

Phones = tuple[str, ...]
Chunk = tuple[str, Phones]  # a letter and its zero to two phonemes


class Split(NamedTuple):
    """Words and their phonemes, apart."""

    train: dict[str, Phones]
    held_out: dict[str, Phones]


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    print(f"BLAS: {BLAS}")
    split = split_dictionary()
    aligned = align_all(split.train)
    print(f"{len(split.train)} words to train on, {len(aligned)} aligned")
    labels = [p for p, n in Counter(c[1] for a in aligned.values() for c in a).items() if n >= RARE]
    labels.sort()
    network = train(aligned, labels)
    write_network(out, network, labels)
    print(f"{out}: {out.stat().st_size / 1000:.0f} kB")
    print(describe_errors(out, split.held_out))


def split_dictionary() -> Split:
    """The dictionary's words of letters alone, with their first pronunciation."""
    words = {w: tuple(p.split()) for w, p in sorted(dictionary().items()) if w.isalpha()}
    words = {w: p for w, p in words.items() if w.isascii() and 2 <= len(w) <= 20}
    held = {w for w in words if zlib.crc32(w.encode()) % 20 == 0}
    return Split({w: p for w, p in words.items() if w not in held}, {w: words[w] for w in held})


# --- alignment -----------------------------------------------------------------------------


def align_all(words: dict[str, Phones]) -> dict[str, list[Chunk]]:
    """Each word's letters with their phonemes; initialisms and the like, which fit badly, go."""
    bare = {w: tuple(p.rstrip("012") for p in phones) for w, phones in words.items()}
    sample = random.Random(SEED).sample(sorted(bare), ALIGNMENT_WORDS)
    chances: dict[Chunk, float] | None = None
    for _ in range(8):
        counts: dict[Chunk, float] = defaultdict(float)
        for word in sample:
            add_expected_counts(word, bare[word], chances, counts)
        total = sum(counts.values())
        chances = {chunk: n / total for chunk, n in counts.items() if n > 0.5}
    assert chances is not None
    costs = {chunk: -math.log(chance) for chunk, chance in chances.items()}
    aligned = {w: best_alignment(w, bare[w], words[w], costs) for w in words}
    return {w: chunks for w, chunks in aligned.items() if chunks is not None}


def add_expected_counts(
    word: str, phones: Phones, chances: dict[Chunk, float] | None, counts: dict[Chunk, float]
) -> None:
    """Forward and backward over every way to share the phonemes out among the letters."""
    n, m = len(word), len(phones)
    forward = np.zeros((n + 1, m + 1)).tolist()
    backward = np.zeros((n + 1, m + 1)).tolist()
    forward[0][0] = backward[n][m] = 1.0
    steps = []
    for i in range(n):
        for j in range(max(0, m - 2 * (n - i)), min(m, 2 * i) + 1):
            for k in range(min(2, m - j) + 1):
                chunk = (word[i], phones[j : j + k])
                chance = 0.05 if chances is None else chances.get(chunk, 1e-12)
                forward[i + 1][j + k] += forward[i][j] * chance
                steps.append((i, j, k, chunk, chance))
    whole = forward[n][m]
    if not whole:
        return
    for i, j, k, chunk, chance in reversed(steps):
        backward[i][j] += chance * backward[i + 1][j + k]
        counts[chunk] += forward[i][j] * chance * backward[i + 1][j + k] / whole


def best_alignment(
    word: str, bare: Phones, phones: Phones, costs: dict[Chunk, float]
) -> list[Chunk] | None:
    """The cheapest alignment, with the stress put back; None where it costs 7 nats a letter."""
    n, m = len(word), len(bare)
    best: dict[tuple[int, int], tuple[float, int]] = {(0, 0): (0.0, 0)}
    for i in range(n):
        for j in range(min(m, 2 * i) + 1):
            if (i, j) not in best:
                continue
            for k in range(min(2, m - j) + 1):
                cost = best[i, j][0] + costs.get((word[i], bare[j : j + k]), 30.0)
                if cost < best.get((i + 1, j + k), (math.inf, 0))[0]:
                    best[i + 1, j + k] = (cost, k)
    if best.get((n, m), (math.inf, 0))[0] > 7 * n:
        return None
    chunks, j = [], m
    for i in range(n, 0, -1):
        k = best[i, j][1]
        chunks.append((word[i - 1], phones[j - k : j]))
        j -= k
    return chunks[::-1]


# --- the network ---------------------------------------------------------------------------


class Layer(nn.Module):
    """A gated convolution with a residual path; the same sums as `LetterToSound._layer`."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(CHANNELS)
        self.conv = nn.Linear(KERNEL * CHANNELS, 2 * CHANNELS)
        self._dilation = dilation

    def __call__(self, x: mx.array, key: mx.array | None) -> mx.array:
        reach, length = KERNEL // 2 * self._dilation, x.shape[1]
        padded = mx.pad(self.norm(x), ((0, 0), (reach, reach), (0, 0)))
        seen = [padded[:, k * self._dilation :][:, :length] for k in range(KERNEL)]
        value, gate = mx.split(self.conv(mx.concatenate(seen, -1)), 2, -1)
        y = value * mx.sigmoid(gate)
        if key is not None:
            y = y * mx.random.bernoulli(1 - DROPOUT, y.shape, key=key) / (1 - DROPOUT)
        return x + y


class Network(nn.Module):
    """Letters (B, W) as numbers 0 to 25 → scores (B, W, classes)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(26, CHANNELS)
        self.layers = [Layer(dilation) for dilation in DILATIONS]
        self.norm = nn.LayerNorm(CHANNELS)
        self.output = nn.Linear(CHANNELS, classes)

    def __call__(self, letters: mx.array, key: mx.array | None = None) -> mx.array:
        keys = [None] * len(self.layers) if key is None else mx.random.split(key, len(self.layers))
        x = self.embedding(letters)
        for layer, layer_key in zip(self.layers, keys, strict=True):
            x = layer(x, layer_key)
        return self.output(self.norm(x))


def train(aligned: dict[str, list[Chunk]], labels: list[Phones]) -> Network:
    """Words of one length make a batch, so that no padding is needed."""
    mx.random.seed(SEED)
    rng = np.random.default_rng(SEED)
    batches_of = group_by_length(aligned, labels)
    network = Network(len(labels))
    optimizer = optim.AdamW(learning_rate=PEAK_RATE, weight_decay=0.01, bias_correction=True)
    state = [network.state, optimizer.state]

    def loss_of(letters: mx.array, classes: mx.array, key: mx.array) -> mx.array:
        scores = network(letters, key)
        return nn.losses.cross_entropy(scores, classes, label_smoothing=0.05).mean()

    def step(letters: mx.array, classes: mx.array, key: mx.array) -> mx.array:
        loss, grads = nn.value_and_grad(network, loss_of)(letters, classes, key)
        optimizer.update(network, optim.clip_grad_norm(grads, 1.0)[0])
        return loss

    compiled = mx.compile(step, inputs=state, outputs=state)
    total = EPOCHS * sum(math.ceil(len(x) / BATCH) for x, _ in batches_of)
    done = 0
    for epoch in range(EPOCHS):
        losses = []
        for letters, classes in shuffled_batches(batches_of, rng):
            decay = 0.51 + 0.49 * math.cos(math.pi * done / total)
            optimizer.learning_rate = mx.array(PEAK_RATE * min(1, (done + 1) / 200) * decay)
            loss = compiled(mx.array(letters), mx.array(classes), mx.random.key(done))
            mx.eval(state, loss)
            losses.append(loss.item())
            done += 1
        print(f"epoch {epoch + 1} of {EPOCHS}: loss {np.mean(losses):.4f}", flush=True)
    return network


Group = tuple[np.ndarray, np.ndarray]  # letters and classes, both (words, W)


def group_by_length(aligned: dict[str, list[Chunk]], labels: list[Phones]) -> list[Group]:
    class_of = {label: i for i, label in enumerate(labels)}
    groups: dict[int, list[tuple[list[int], list[int]]]] = defaultdict(list)
    for word, chunks in sorted(aligned.items()):
        if all(phones in class_of for _, phones in chunks):
            letters = [ord(c) - ord("a") for c in word]
            groups[len(word)].append((letters, [class_of[phones] for _, phones in chunks]))
    return [
        (np.array([x for x, _ in group]), np.array([y for _, y in group]))
        for _, group in sorted(groups.items())
    ]


def shuffled_batches(groups: list[Group], rng: np.random.Generator) -> list[Group]:
    batches = []
    for letters, classes in groups:
        order = rng.permutation(len(letters))
        parts = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
        batches += [(letters[part], classes[part]) for part in parts]
    return [batches[i] for i in rng.permutation(len(batches))]


def write_network(out: Path, network: Network, labels: list[Phones]) -> None:
    """The arrays `LetterToSound` reads; matrices in eight bits with a scale for each row."""
    arrays: dict[str, Any] = {
        "labels": np.array([" ".join(label) for label in labels]),
        "dilations": np.array(DILATIONS),
    }
    for name, parameter in tree_flatten(network.parameters()):
        name, value = name.replace("embedding.weight", "embedding"), np.array(parameter)
        if value.ndim == 2:
            scale = np.abs(value).max(1) / 127
            arrays[f"{name}.scale"] = scale.astype(np.float32)
            value = np.round(value / scale[:, None]).astype(np.int8)
        arrays[name] = value
    np.savez_compressed(out, **arrays)


# --- errors --------------------------------------------------------------------------------


def describe_errors(path: Path, held_out: dict[str, Phones]) -> str:
    """Phoneme and word error rates of the stored network, with and without stress."""
    network = letter_to_sound(path.read_bytes())
    guesses = {word: tuple(network.pronounce(word)) for word in held_out}
    lines = [f"{len(held_out)} held-out words"]
    for name, ending in (("with stress", ""), ("without stress", "012")):
        errors = [
            edit_distance(
                [p.rstrip(ending) for p in phones], [p.rstrip(ending) for p in guesses[word]]
            )
            for word, phones in held_out.items()
        ]
        phonemes = sum(map(len, held_out.values()))
        wrong = sum(e > 0 for e in errors)
        lines.append(
            f"{name}: {sum(errors) / phonemes:.1%} of phonemes wrong, "
            f"{1 - wrong / len(errors):.1%} of words right"
        )
    return "\n".join(lines)


def edit_distance(a: list[str], b: list[str]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (x != y)))
    return row[-1]


if __name__ == "__main__":
    main()
