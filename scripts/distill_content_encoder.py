"""Trains the demo's content encoder: a small HuBERT that imitates Whisper-base's encoder.

    python scripts/distill_content_encoder.py --voices DIR --teacher FILE --output FOLDER

The teacher is `whisper_base_encoder.safetensors` (MIT, OpenAI), its tensors under CTranslate2's
names. Its features of every clip are reduced to their main directions and learnt by regression.
Speech: the folders `kathleen` and `kokoro` of DIR, the last kokoro speaker left out.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import NamedTuple

import mlx_vits  # noqa: F401  (chooses the BLAS before mlx is imported)
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import typer
from demo_clips import training_clips

from mlx_vits.audio.files import read_audio, resample
from mlx_vits.audio.spectrogram import mel_filterbank
from mlx_vits.checkpoints.state_dict import state_of
from mlx_vits.checkpoints.tensors import read_tensors, write_tensors
from mlx_vits.files import atomic_write, make_folder
from mlx_vits.models.hubert import HubertConfig, HubertModel
from mlx_vits.preprocessing.features import ENCODER_RATE
from mlx_vits.preprocessing.levels import ENCODER_SCALE, mix_level

WINDOW_SECONDS = 30
HEADS = 8
DIRECTIONS = 96
SECONDS = 3.2  # of the clips that the student trains on
STUDENT = {
    "hidden_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 448,
    "conv_dim": [40] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 8,
    "feat_extract_norm": "group",
    "conv_bias": False,
    "feat_proj_layer_norm": True,
    "do_stable_layer_norm": False,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
}


class Example(NamedTuple):
    """A clip and what the teacher says of it.

    Attributes:
        wav: `(N,)` float32 at 16 kHz, levelled and scaled as in data preparation.
        target: `(S, DIRECTIONS)` float16.
    """

    wav: np.ndarray
    target: np.ndarray


def whisper_mel(wav: np.ndarray) -> mx.array:
    """Whisper's log-mel of up to 30 s at 16 kHz, padded: `(1, 3000, 80)`."""
    samples = WINDOW_SECONDS * ENCODER_RATE
    padded = np.pad(wav[:samples], (0, max(0, samples - len(wav))))
    padded = np.pad(padded, 200, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, 400)[::160][:3000]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    power = mx.square(mx.abs(mx.fft.rfft(mx.array((frames * window).astype(np.float32)))))
    mel = power @ mel_filterbank(ENCODER_RATE, 400, 80, 0.0, 8000.0).T
    log = mx.log10(mx.maximum(mel, 1e-10))
    return ((mx.maximum(log, mx.max(log) - 8) + 4) / 4)[None]


class Teacher:
    """Whisper-base's encoder."""

    def __init__(self, path: Path):
        tensors = read_tensors(path).tensors
        self.w = {name: tensor.astype(mx.float32) for name, tensor in tensors.items()}

    def _linear(self, x: mx.array, name: str) -> mx.array:
        y = x @ self.w[f"{name}.weight"].T
        return y + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else y

    def _norm(self, x: mx.array, name: str) -> mx.array:
        return mx.fast.layer_norm(x, self.w[f"{name}.gamma"], self.w[f"{name}.beta"], 1e-5)

    def _conv(self, x: mx.array, name: str, stride: int) -> mx.array:
        weight = self.w[f"{name}.weight"].transpose(0, 2, 1)
        return nn.gelu(mx.conv1d(x, weight, stride, 1) + self.w[f"{name}.bias"])

    def __call__(self, mel: mx.array) -> mx.array:
        """`(B, 3000, 80)` to `(B, 1500, 512)`."""
        x = self._conv(self._conv(mel, "conv1", 1), "conv2", 2)
        x = x + self.w["position_encodings.encodings"][: x.shape[1]]
        for layer in range(6):
            x = x + self._attend(x, f"layer_{layer}.self_attention")
            y = self._norm(x, f"layer_{layer}.ffn.layer_norm")
            y = nn.gelu(self._linear(y, f"layer_{layer}.ffn.linear_0"))
            x = x + self._linear(y, f"layer_{layer}.ffn.linear_1")
        return self._norm(x, "layer_norm")

    def _attend(self, x: mx.array, name: str) -> mx.array:
        batch, length, width = x.shape
        qkv = self._linear(self._norm(x, f"{name}.layer_norm"), f"{name}.linear_0")
        q, k, v = (
            part.reshape(batch, length, HEADS, -1).swapaxes(1, 2)
            for part in mx.split(qkv, 3, axis=-1)
        )
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5)
        return self._linear(y.swapaxes(1, 2).reshape(batch, length, width), f"{name}.linear_1")


def read_clip(path: Path) -> np.ndarray:
    """`(N,)` at 16 kHz."""
    recording = read_audio(path)
    return resample(recording.wav, recording.rate, ENCODER_RATE)


def teach(teacher: Teacher, clips: list[Path], cache: Path) -> list[np.ndarray]:
    """The teacher's features `(S, 512)` of each clip, several clips in one window."""
    if cache.is_file():
        stored = np.load(cache)
        return np.split(stored["features"], stored["ends"][:-1])
    features: list[np.ndarray] = []
    started, window, counts = time.monotonic(), np.zeros(0, np.float32), []

    def flush() -> None:
        nonlocal window, counts
        out = np.array(teacher(whisper_mel(window))[0].astype(mx.float16))
        start = 0
        for samples in counts:
            features.append(out[start // 320 : (start + samples) // 320])
            start += samples
        window, counts = np.zeros(0, np.float32), []

    for number, path in enumerate(clips):
        wav = read_clip(path)[: WINDOW_SECONDS * ENCODER_RATE]
        wav = np.pad(wav, (0, -len(wav) % 320))
        if len(window) + len(wav) > WINDOW_SECONDS * ENCODER_RATE:
            flush()
        window, counts = np.concatenate([window, wav]), [*counts, len(wav)]
        if number % 100 == 0:
            print(f"teacher: {number}/{len(clips)} clips, {time.monotonic() - started:.0f} s")
    flush()
    np.savez(cache, features=np.concatenate(features), ends=np.cumsum([len(f) for f in features]))
    return features


def window_positions(lengths: list[int]) -> np.ndarray:
    """Where in its 30 s window each frame lay, by the packing of `teach`."""
    positions, used = [], 0
    for length in lengths:
        if used + length > WINDOW_SECONDS * 50:
            used = 0
        positions.append(np.arange(used, used + length))
        used += length
    return np.concatenate(positions)


def reduce(features: list[np.ndarray]) -> list[np.ndarray]:
    """The main directions of what depends on the speech, unit variance in all, float16.

    Over a third of the variance of Whisper's features says where in its window a frame lies, which
    nobody can hear: the mean at each position is taken away first.
    """
    lengths = [len(f) for f in features]
    x = np.concatenate(features).astype(np.float32)
    x -= x.mean(axis=0)
    positions = window_positions(lengths)
    counts = np.bincount(positions, minlength=WINDOW_SECONDS * 50)
    means = np.zeros((len(counts), x.shape[1]), np.float32)
    np.add.at(means, positions, x)
    means /= np.maximum(counts, 1)[:, None]
    smooth = np.ones(51) / 51
    means = np.stack([np.convolve(column, smooth, "same") for column in means.T], axis=1)
    before = np.mean(np.square(x))
    x -= means.astype(np.float32)[positions]
    print(f"position explains {1 - np.mean(np.square(x)) / before:.1%}")
    values, vectors = np.linalg.eigh(np.cov(x[::5].T))
    print(f"{DIRECTIONS} directions keep {values[-DIRECTIONS:].sum() / values.sum():.1%}")
    x = x @ vectors[:, ::-1][:, :DIRECTIONS].astype(np.float32)
    x = (x / x.std()).astype(np.float16)
    return np.split(x, np.cumsum(lengths)[:-1])


class Student(nn.Module):
    """The content encoder and the head that is thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = HubertModel(HubertConfig.from_dict(STUDENT))
        self.head = nn.Linear(STUDENT["hidden_size"], DIRECTIONS)

    def __call__(self, wav: mx.array) -> mx.array:
        return self.head(self.encoder(wav))


def draw_batch(examples: list[Example], size: int, random: np.random.Generator) -> tuple:
    """Random excerpts: `(B, N)` and their targets `(B, S, DIRECTIONS)`.

    A student's frame is centred 12.5 ms after the start of its step, a teacher's on the start: the
    mean of two neighbours lies within 2.5 ms.
    """
    frames = int(SECONDS * 50)
    wavs, targets = [], []
    for index in random.integers(len(examples), size=size):
        wav, target = examples[index]
        start = int(random.integers(max(1, len(target) - frames)))
        piece = wav[start * 320 : start * 320 + frames * 320 + 80]
        wavs.append(np.pad(piece, (0, frames * 320 + 80 - len(piece))))
        part = target[start : start + frames + 1].astype(np.float32)
        part = np.pad(part, ((0, frames + 1 - len(part)), (0, 0)))
        targets.append((part[:-1] + part[1:]) / 2)
    return mx.array(np.stack(wavs)), mx.array(np.stack(targets))


def main(
    voices: Path = typer.Option(..., help="Folder with kathleen/ and kokoro/."),
    teacher: Path = typer.Option(..., help="whisper_base_encoder.safetensors."),
    output: Path = typer.Option(..., help="Folder of the content encoder."),
    cache: Path = typer.Option(Path("teacher_features.npz"), help="Features, kept between runs."),
    steps: int = typer.Option(6000, help="Updates."),
    batch_size: int = typer.Option(16, help="Excerpts a step."),
    learning_rate: float = typer.Option(1e-3, help="At its highest."),
    seed: int = typer.Option(0),
) -> None:
    """Distils the content encoder of the demo base."""
    clips = [clip.path for clip in training_clips(voices)]
    targets = reduce(teach(Teacher(teacher), clips, cache))
    examples = [
        Example(mix_level(read_clip(path), path.name) * ENCODER_SCALE, target)
        for path, target in zip(clips, targets, strict=True)
    ]
    checked, examples = examples[::50], [e for i, e in enumerate(examples) if i % 50]
    mx.random.seed(seed)
    random = np.random.default_rng(seed)
    student = Student()
    rate = optim.join_schedules(
        [
            optim.linear_schedule(0.0, learning_rate, 300),
            optim.cosine_decay(learning_rate, steps - 300, learning_rate * 0.02),
        ],
        [300],
    )
    optimizer = optim.AdamW(rate, weight_decay=0.01, bias_correction=True)

    def loss_of(wav: mx.array, target: mx.array) -> mx.array:
        out = student(wav)
        frames = min(out.shape[1], target.shape[1])
        return mx.mean(mx.square(out[:, :frames] - target[:, :frames]))

    grad = nn.value_and_grad(student, loss_of)
    started, recent = time.monotonic(), []
    for step in range(1, steps + 1):
        loss, grads = grad(*draw_batch(examples, batch_size, random))
        grads, _ = optim.clip_grad_norm(grads, 1.0)
        optimizer.update(student, grads)
        mx.eval(loss, student.parameters(), optimizer.state)
        recent.append(loss.item())
        if step % 100 == 0 or step == steps:
            batch = draw_batch(checked, 32, np.random.default_rng(1))
            print(
                f"step {step}: unexplained {np.mean(recent):.3f}, of unseen clips "
                f"{loss_of(*batch).item():.3f}, "
                f"{time.monotonic() - started:.0f} s",
                flush=True,
            )
            recent = []
        if step % 500 == 0 or step == steps:
            write_encoder(student, output)


def write_encoder(student: Student, folder: Path) -> None:
    """Writes `config.json`, fp16 `weights.safetensors`, and the head beside them.

    The head is no part of a content encoder; `make_demo_base.py` makes `ssl_proj` of it.
    """
    make_folder(folder)
    with atomic_write(folder / "config.json") as file:
        file.write(json.dumps(STUDENT, indent=1).encode())
    state = {name: array.astype(mx.float16) for name, array in state_of(student.encoder).items()}
    write_tensors(folder / "weights.safetensors", state, {"format": "pt"})
    write_tensors(folder / "head.safetensors", dict(student.head.parameters()))


if __name__ == "__main__":
    typer.run(main)
