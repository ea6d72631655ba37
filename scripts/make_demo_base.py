"""Trains the demo's base from scratch, with this project's own trainer, on an NVIDIA GPU or a Mac.

    python scripts/make_demo_base.py --voices DIR --content-encoder DIR --output weights/demo/base

DIR holds `kathleen` (CC0, dataset-voice-kathleen) and `kokoro` (output of Kokoro-82M, Apache-2.0;
the speaker last in alphabetical order is left out), each with `transcripts.tsv`. Without a content
encoder one with fixed random weights is made (see `distill_content_encoder.py` for a better one).
A run that was cut off goes on from its last state in --work; `--start BASE` goes on from a finished
base, with new moments.
"""

from __future__ import annotations

import collections
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx_vits  # noqa: F401  (chooses the BLAS before mlx is imported)
import mlx.core as mx
import numpy as np
import typer
from demo_clips import Spoken, training_clips

from mlx_vits.audio.files import read_speech
from mlx_vits.audio.spectrogram import spectrogram
from mlx_vits.checkpoints.base import load_content_encoder
from mlx_vits.checkpoints.run import read_run_state, write_run_state
from mlx_vits.checkpoints.state_dict import load_state, state_of
from mlx_vits.checkpoints.tensors import read_tensors, write_tensors
from mlx_vits.config import Config
from mlx_vits.files import atomic_write, make_folder
from mlx_vits.models.hubert import HubertConfig, HubertModel
from mlx_vits.models.vits import MultiPeriodDiscriminator, SynthesizerTrn
from mlx_vits.preprocessing.features import align_features, encoder_input
from mlx_vits.preprocessing.levels import mix_level, to_int16
from mlx_vits.text import clean_text, phonemes_to_ids
from mlx_vits.training.batches import (
    Item,
    Padding,
    Utterance,
    epoch_batches,
    pad_utterances,
)
from mlx_vits.training.step import Batch, GANStep
from mlx_vits.training.vits_trainer import VITSTrainer, VITSTrainingConfig

SEED = 1234
PADDING = Padding(frames=32, phonemes=96)
BOUNDARIES = (255, 383)
SHORTEST = 40  # frames
# Share of the steps, and what it takes of the learning rate of both nets.
PHASES = ((0.45, 1.0), (0.25, 0.5), (0.2, 0.25), (0.1, 0.0625))
RESIDUAL_GAIN = 0.3  # of the second convolution of a residual pair, at first
LOUDNESS = 0.1  # of the untrained decoder

CONFIG: dict[str, Any] = {
    "train": {"batch_size": 4, "fp16_run": False},
    "model": {
        "inter_channels": 64,
        "hidden_channels": 64,
        "filter_channels": 192,
        "n_heads": 2,
        "n_layers": 4,
        "p_dropout": 0.0,
        "upsample_initial_channel": 128,
        "gin_channels": 128,
        "version": "v2",
    },
    "reduced_dims": {
        "mrte_hidden": 128,
        "codebook_size": 512,
        "style_hidden": 64,
        "flow_wn_layers": 3,
        "enc_q_wn_layers": 6,
        "disc_width": 0.125,
    },
    "content_module": "demo",
}


class MemoryVoice:
    """All clips in memory, under the interface of `PreparedVoice`; batches are made ahead."""

    def __init__(
        self, config: Config, utterances: dict[str, Utterance], longest: int, window: int | None
    ):
        self.config, self._utterances, self._window = config, utterances, window
        self.items = sorted(
            Item(name, utterance.text.tolist(), len(utterance.spec))
            for name, utterance in utterances.items()
            if SHORTEST <= len(utterance.spec) <= longest
        )

    def plan(self, batch_size: int, seed: int, epoch: int) -> list[list[Item]]:
        return epoch_batches(self.items, batch_size, seed, epoch, BOUNDARIES)

    def batches(self, batch_size: int, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        plan = list(enumerate(self.plan(batch_size, seed, epoch)))[start:]

        def pad(numbered: tuple[int, list[Item]]) -> dict[str, np.ndarray]:
            number, items = numbered
            random = np.random.default_rng([seed, epoch, number])
            clips = [self._cut(self._utterances[item.name], random) for item in items]
            return pad_utterances(clips, self.config, PADDING)

        with ThreadPoolExecutor(1) as pool:
            ahead = collections.deque(pool.submit(pad, items) for items in plan[:2])
            waiting = iter(plan[2:])
            while ahead:
                fields = ahead.popleft().result()
                ahead.extend(pool.submit(pad, items) for items in itertools.islice(waiting, 1))
                yield Batch(**{name: mx.array(array) for name, array in fields.items()})

    def _cut(self, clip: Utterance, random: np.random.Generator) -> Utterance:
        """A random window of a clip, with the whole clip's text."""
        frames = len(clip.spec)
        if self._window is None or frames <= self._window:
            return clip
        hop = self.config.data.hop_length
        first = 2 * int(random.integers(0, (frames - self._window) // 2 + 1))
        last = first + self._window
        return clip._replace(
            ssl=clip.ssl[first:last],
            spec=clip.spec[first:last],
            wav=clip.wav[first * hop : last * hop],
        )


class ReconstructionStep(GANStep):
    """A step of the generator alone, without the discriminator: the first thousands of updates
    from scratch go faster so."""

    def _update_discriminator(self, real: mx.array, fake: mx.array) -> tuple[mx.array, Any]:
        return mx.array(0.0), {}

    def _judge(self, real: mx.array, fake: mx.array) -> dict[str, mx.array]:
        return {"loss_gen": mx.array(0.0), "loss_fm": mx.array(0.0)}


class ReconstructionTrainer(VITSTrainer):
    """Trains the generator alone."""

    step_class = ReconstructionStep


def random_encoder() -> HubertModel:
    """A content encoder with fixed random weights."""
    mx.random.seed(SEED)
    return HubertModel(
        HubertConfig(
            hidden_size=112,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=224,
            conv_dim=(40,) * 7,
            num_conv_pos_embeddings=32,
            num_conv_pos_embedding_groups=8,
        )
    )


def read_utterances(
    clips: Sequence[Spoken], encoder: HubertModel, config: Config
) -> dict[str, Utterance]:
    """Decodes and encodes every clip."""
    rate = config.data.sampling_rate

    def load(clip: Spoken) -> tuple[np.ndarray, np.ndarray, list[int]]:
        wav = read_speech(clip.path, rate)
        levelled = to_int16(mix_level(wav, clip.name)).astype(np.float32) / 32768
        phonemes = clean_text(clip.text, "en", config.version).phonemes
        ids = phonemes_to_ids(phonemes, config.version)
        return levelled, encoder_input(wav, rate, clip.name), ids

    utterances, started = {}, time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        for clip, (wav, heard, ids) in zip(clips, pool.map(load, clips), strict=True):
            spec = spectrogram(mx.array(wav)[None], config.data)[0]
            ssl = encoder(mx.array(heard)[None])[0]
            mx.eval(spec, ssl)
            features = align_features(np.array(ssl), len(spec), clip.name)
            text = np.array(ids, dtype=np.int32)
            utterances[clip.name] = Utterance(features, np.array(spec), wav, text)
            if len(utterances) % 500 == 0:
                print(f"read {len(utterances)} clips, {time.monotonic() - started:.0f} s")
    return utterances


def set_ssl_proj(model: SynthesizerTrn, head: Path | None) -> None:
    """`ssl_proj` as the mean of two frames, seen through the encoder's distillation head if any."""
    width = model.config.reduced_dims.ssl_dim
    weight, bias = mx.eye(width), mx.zeros((width,))
    if head is not None and head.is_file():
        tensors = read_tensors(head).tensors
        missing = width - tensors["bias"].shape[0]
        weight = mx.pad(tensors["weight"], [(0, missing), (0, 0)])
        bias = mx.pad(tensors["bias"], (0, missing))
    model.ssl_proj["weight"] = mx.stack([weight / 2, weight / 2], axis=1)
    model.ssl_proj["bias"] = bias


def draw_decoder(model: SynthesizerTrn) -> None:
    """Initial values of the decoder that keep the signal's variance from stage to stage.

    Upstream's suit 512 channels. In a decoder this narrow the biases drown what comes from the
    latent, and thousands of updates pass before it is heard.
    """
    random = np.random.default_rng(SEED)
    tensors = {name: np.array(array) for name, array in state_of(model).items()}
    rates = model.config.model.upsample_rates
    for name in [name for name in tensors if name.startswith("dec.")]:
        stem, _, kind = name.rpartition(".")
        if kind == "bias":
            tensors[name] = np.zeros_like(tensors[name])
        if kind not in ("weight", "weight_v"):
            continue
        shape = tensors[name].shape
        fan_in = shape[1] * shape[2]
        gain = 2.0  # He et al. 2015, arXiv:1502.01852
        if stem.startswith("dec.ups."):
            fan_in = shape[0] * shape[2] / rates[int(stem.rpartition(".")[2])]
        elif ".convs2." in stem:
            gain *= RESIDUAL_GAIN**2
        elif stem == "dec.conv_post":
            gain *= LOUDNESS**2
        elif stem in ("dec.conv_pre", "dec.cond"):
            gain = 1.0
        weight = random.normal(0, np.sqrt(gain / fan_in), shape).astype(np.float32)
        tensors[name] = weight
        if kind == "weight_v":
            tensors[f"{stem}.weight_g"] = np.sqrt(np.sum(weight**2, axis=(1, 2), keepdims=True))
    load_state(model, tensors, source="the drawn decoder")


def fit_codebook(model: SynthesizerTrn, utterances: dict[str, Utterance]) -> None:
    """Fits the codebook by k-means on what `ssl_proj` gives."""
    width = model.config.reduced_dims.ssl_dim
    projected = [model.ssl_proj(mx.array(u.ssl)[None])[0] for u in utterances.values()]
    points = mx.concatenate(projected)
    mx.eval(points)
    book = model.quantizer.codebook
    random = np.random.default_rng(SEED)
    entries = book.embed.shape[0]
    book.embed = points[mx.array(random.permutation(len(points))[:entries])]
    for _ in range(50):
        codes = book.nearest(points)
        counts = mx.zeros((entries,)).at[codes].add(1.0)
        sums = mx.zeros((entries, width)).at[codes].add(points)
        means = sums / mx.maximum(counts, 1)[:, None]
        book.embed = mx.where(counts[:, None] > 0, means, book.embed)
        mx.eval(book.embed, counts)
    error = mx.mean(mx.square(points - book.embed[book.nearest(points)])).item()
    print(
        f"codebook: {int((counts > 0).sum().item())} of {entries} entries used, "
        f"{1 - error / mx.mean(mx.var(points, axis=0)).item():.1%} of the variance explained"
    )
    book.embed_avg, book.cluster_size = book.embed * 1, mx.clip(counts, 2, 60000)
    book.inited = mx.ones((1,))


def write_base(
    folder: Path, trainer: VITSTrainer, encoder: HubertModel, encoder_config: dict[str, Any]
) -> None:
    """Writes the base in fp16."""

    def half(model: Any) -> dict[str, mx.array]:
        return {name: array.astype(mx.float16) for name, array in state_of(model).items()}

    config = trainer.generator.config
    # How this stage was trained is nobody's default.
    config = replace(config, train=Config.from_dict(CONFIG).train)
    make_folder(folder / "content_encoder")
    for path, values in (
        (folder / "config.json", config.to_dict()),
        (folder / "content_encoder" / "config.json", encoder_config),
    ):
        with atomic_write(path) as file:
            file.write(json.dumps(values, indent=1).encode())
    place = trainer.place
    info = {"info": f"{place.epoch}epoch_{place.step}iteration", "format": "pt"}
    write_tensors(folder / "generator.safetensors", half(trainer.generator), info)
    write_tensors(folder / "discriminator.safetensors", half(trainer.discriminator), info)
    write_tensors(folder / "content_encoder" / "weights.safetensors", half(encoder), info)


def train(
    trainer: VITSTrainer,
    steps: int,
    learning_rate: float,
    minutes: float,
    save: Callable[[], None],
) -> bool:
    """Runs the phases from the trainer's place on; whether they were all done in time."""
    started = saved = time.monotonic()
    recent: list[dict[str, float]] = []
    end = 0
    for share, factor in PHASES:
        end += round(share * steps)
        rate = factor * learning_rate
        trainer.config = replace(trainer.config, lr_g=rate, lr_d=rate, steps=end)
        for record in trainer.steps():
            recent.append(record.values)
            now = time.monotonic()
            if record.place.step % 50 == 0:
                means = {k: np.mean([v[k] for v in recent]) for k in recent[0]}
                names = ("mel", "fm", "gen", "kl", "d")
                losses = "  ".join(f"{name} {means[f'loss_{name}']:.3f}" for name in names)
                where = f"{record.place.step}/{steps}"
                print(f"{where}  {losses}  lr {rate:.0e}  {now - started:.0f} s", flush=True)
                recent = []
            if now - saved > 300 or now - started > minutes * 60:
                save()
                saved = now
            if now - started > minutes * 60:
                return False
    save()
    return True


def main(
    voices: Path = typer.Option(..., help="Folder with kathleen/ and kokoro/."),
    output: Path = typer.Option(..., help="Folder of the base."),
    content_encoder: Path = typer.Option(None, help="Folder; without it a random one is made."),
    work: Path = typer.Option(Path("runs/demo-base"), help="State between runs."),
    start: Path = typer.Option(None, help="Base to go on from."),
    new_decoder: bool = typer.Option(False, help="With --start: begin the decoder again."),
    steps: int = typer.Option(10000, help="Updates."),
    batch_size: int = typer.Option(32, help="Clips."),
    learning_rate: float = typer.Option(5e-4, help="Of the first phase."),
    minutes: float = typer.Option(1e9, help="Stop after so long; run again to go on."),
    adversarial: bool = typer.Option(True, help="With the discriminator."),
    kl_weight: float = typer.Option(1.0, help="Of the KL term; upstream's is 1."),
    segment_size: int = typer.Option(20480, help="Samples decoded of each clip."),
    longest: int = typer.Option(383, help="Frames of the longest clip."),
    window: int = typer.Option(None, help="Frames cut from each clip. [default: whole clips]"),
    compiled: bool = typer.Option(None, help="Compile the step. [default: on a GPU]"),
) -> None:
    """Trains the demo's base."""
    encoder = load_content_encoder(content_encoder) if content_encoder else random_encoder()
    shape = encoder.config
    dims = CONFIG["reduced_dims"] | {"ssl_dim": shape.hidden_size}
    settings = CONFIG["train"] | {"segment_size": segment_size, "c_kl": kl_weight}
    config = Config.from_dict(CONFIG | {"reduced_dims": dims, "train": settings})
    mx.random.seed(SEED)
    generator, discriminator = SynthesizerTrn(config), MultiPeriodDiscriminator(config)
    utterances = read_utterances(training_clips(voices), encoder, config)
    if start:
        for model, name in ((generator, "generator"), (discriminator, "discriminator")):
            load_state(
                model, read_tensors(start / f"{name}.safetensors").tensors, source=str(start)
            )
    if not start or new_decoder:
        draw_decoder(generator)
    if not start:
        set_ssl_proj(generator, content_encoder and content_encoder / "head.safetensors")
        fit_codebook(generator, utterances)
    training = VITSTrainingConfig(
        batch_size=batch_size,
        text_low_lr_rate=1.0,
        pretrained_reg_strength=0.0,
        segment_size=segment_size,
        seed=SEED,
        compiled=compiled,
    )
    voice: Any = MemoryVoice(config, utterances, longest, window)
    kind = VITSTrainer if adversarial else ReconstructionTrainer
    trainer = kind(generator, discriminator, voice, training)
    print(
        f"{len(voice.items)} clips, {trainer.steps_per_epoch} steps an epoch, {mx.default_device()}"
    )
    make_folder(work)
    state = work / "state.safetensors"
    if state.is_file():
        trainer.restore(read_run_state(state), str(state))
        print(f"going on from step {trainer.place.step}")
    values = {name: getattr(shape, name) for name in HubertConfig.__dataclass_fields__}

    def save() -> None:
        write_run_state(state, trainer.trees(), trainer.place)
        write_base(output, trainer, encoder, values)

    done = train(trainer, steps, learning_rate, minutes, save)
    if done:
        shutil.rmtree(work, ignore_errors=True)
    print("done" if done else f"stopped at step {trainer.place.step}; run again to go on")


if __name__ == "__main__":
    typer.run(main)
