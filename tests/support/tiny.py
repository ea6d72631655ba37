"""A base small enough to train in a test, with random weights, and clips to train it on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_vits.audio.files import write_wav
from mlx_vits.checkpoints.base import Base, find_base
from mlx_vits.checkpoints.state_dict import state_of
from mlx_vits.checkpoints.tensors import write_tensors
from mlx_vits.checkpoints.torch_archive import write_torch_archive
from mlx_vits.config import Config
from mlx_vits.models.hubert import HubertConfig, HubertModel
from mlx_vits.models.vits import MultiPeriodDiscriminator, SynthesizerTrn

RATE = 32000
SEGMENT = 6400

CONFIG = {
    "train": {"segment_size": SEGMENT},
    "model": {
        "inter_channels": 8,
        "hidden_channels": 12,
        "filter_channels": 16,
        "n_heads": 2,
        "n_layers": 2,
        "p_dropout": 0.1,
        "resblock_kernel_sizes": [3, 5],
        "resblock_dilation_sizes": [[1, 3], [1]],
        "upsample_initial_channel": 32,
        "gin_channels": 16,
        "version": "v2",
    },
    "reduced_dims": {
        "ssl_dim": 16,
        "mrte_hidden": 16,
        "codebook_size": 32,
        "style_hidden": 8,
        "enc_q_wn_layers": 2,
        "flow_wn_layers": 2,
        "disc_width": 1 / 64,
    },
}

TEXTS = (
    "in being comparatively modern.",
    "has never been surpassed.",
    "the invention of movable metal letters",
    "than in the same operations with ugly ones.",
    "for our purpose, may be considered as the art",
)


SV_DIM = 24  # of the tiny speaker vectors


def tiny_config(version: str = "v2", **dims: int) -> Config:
    model: dict[str, Any] = {"version": version}
    if version == "v1":
        dims = {"text_vocab": 322, "ref_spec_bins": 1025} | dims
    if "Pro" in version:
        model |= {"p_dropout": 0.0, "gin_channels": 20}  # another width than MRTE's, as upstream's
        dims = {"sv_dim": SV_DIM} | dims
    if version == "v2ProPlus":
        model["upsample_kernel_sizes"] = [20, 16, 8, 2, 2]
    return Config.from_dict(
        CONFIG | {"model": CONFIG["model"] | model, "reduced_dims": CONFIG["reduced_dims"] | dims}
    )


def make_base(folder: Path, *, seed: int = 0, ssl_dim: int = 16, version: str = "v2") -> Base:
    """Writes a base; the quantizer's entries are random, as good as any."""
    config = tiny_config(version, ssl_dim=ssl_dim)
    mx.random.seed(seed)
    model = SynthesizerTrn(config)
    book = model.quantizer.codebook
    book.embed = mx.random.normal(book.embed.shape)
    book.inited = mx.ones((1,))
    encoder = HubertModel(
        HubertConfig(
            hidden_size=ssl_dim,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            conv_dim=(8,) * 7,
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2,
        )
    )
    (folder / "content_encoder").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    write_tensors(folder / "generator.safetensors", state_of(model))
    write_tensors(folder / "discriminator.safetensors", state_of(MultiPeriodDiscriminator(config)))
    values = {name: getattr(encoder.config, name) for name in HubertConfig.__dataclass_fields__}
    (folder / "content_encoder" / "config.json").write_text(json.dumps(values))
    write_tensors(folder / "content_encoder" / "weights.safetensors", state_of(encoder))
    return find_base(str(folder))


def hum(seconds: float, pitch: float = 150.0, rate: int = RATE) -> np.ndarray:
    """Something voiced: harmonics whose balance moves, `(N,)` float32."""
    time = np.arange(round(seconds * rate)) / rate
    parts = [
        np.sin(2 * np.pi * pitch * k * time) / k * (1 + np.sin(2 * np.pi * (k + 1) * time))
        for k in range(1, 12)
    ]
    return (0.15 * np.sum(parts, axis=0)).astype(np.float32)


def make_voice(folder: Path, clips: int = 5, shortest: float = 1.2) -> Path:
    """Writes clips of 1.2 to 2 seconds, or from `shortest` on, with transcripts."""
    folder.mkdir(parents=True)
    lines = []
    for index in range(clips):
        name = f"clip_{index}.wav"
        write_wav(folder / name, hum(shortest + 0.2 * index, 120 + 20 * index), RATE)
        lines.append(f"{name}\t{TEXTS[index % len(TEXTS)]}\n")
    (folder / "transcripts.tsv").write_text("".join(lines))
    return folder


def add_speaker_vectors(prepared: Path, seed: int = 0) -> None:
    """Writes `7-sv_cn/NAME.pt` for every clip of a prepared folder, also of those held out."""
    random = np.random.default_rng(seed)
    for part in (prepared, prepared / "held_out"):
        (part / "7-sv_cn").mkdir(exist_ok=True)
        for wav in sorted((part / "5-wav32k").iterdir()):
            vector = random.standard_normal((1, SV_DIM)).astype(np.float32)
            write_torch_archive(part / "7-sv_cn" / f"{wav.name}.pt", vector)


class Silent:
    """A screen nobody looks at."""

    def say(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def preparing(self, done: int, count: int, name: str) -> None: ...
    def stage(self, name: str, number: int, count: int) -> None: ...
    def step(self, record: Any, total: int) -> None: ...
