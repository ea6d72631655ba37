"""Stage `train`: the base, from random weights.

The generator alone at first, then with the discriminator. The posterior is hardly held to the prior
until the decoder speaks. Then the prior is decoded beside it, and learns from what it sounds like;
at last it learns alone. Writes `train.safetensors`, from which a call that is cut off goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_vits.audio.spectrogram import mel_of_spectrogram, mel_spectrogram
from mlx_vits.checkpoints.base import find_base, load_discriminator
from mlx_vits.checkpoints.state_dict import load_state, state_of
from mlx_vits.config import Config
from mlx_vits.errors import UserError
from mlx_vits.models.vits import MultiPeriodDiscriminator, SynthesizerTrn, slice_segments
from mlx_vits.training import losses
from scripts.demo_base.adamw import Net
from scripts.demo_base.fit import fit_settings
from scripts.demo_base.heard import Listener, heard_loss
from scripts.demo_base.losses import ExtraWeights, attention_loss, envelope_loss, stft_loss
from scripts.demo_base.running import (
    Clock,
    Draw,
    Late,
    State,
    cosine_rate,
    draw_ahead,
    read_state,
    same_shapes,
    step_key,
    write_state,
)
from scripts.demo_base.settings import Settings, Train
from scripts.demo_base.step import FastStep, Rates
from scripts.demo_base.store import say
from scripts.demo_base.whisper import Teacher
from scripts.demo_base.windows import Windows, WindowSource, read_window_source

RESIDUAL_GAIN = 0.3  # of the second convolution of a residual pair, at first
LOUDNESS = 0.1  # of the untrained decoder
STATE = "train.safetensors"
_LOG_EVERY, _CHECK_EVERY = 200, 1000


def draw_decoder(model: SynthesizerTrn, seed: int) -> None:
    """Initial values of the decoder that keep the signal's variance from stage to stage.

    Upstream's suit 512 channels. In a decoder this narrow the biases drown what comes from the
    latent, and thousands of updates pass before it is heard.
    """
    random = np.random.default_rng(seed)
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


def training_config(settings: Settings) -> Config:
    """The base's configuration, with the segments of this training and without dropout."""
    config = settings.model
    return replace(
        config,
        train=replace(config.train, segment_size=settings.train.segment_size),
        reduced_dims=replace(config.reduced_dims, dropout_everywhere=0.0),
    )


def read_listener(teacher: Path, settings: Settings) -> Listener | None:
    """What hears the segments; none where no loss asks for it.

    Raises:
        CheckpointError: the teacher's file is missing or damaged.
        UserError: the teacher has fewer layers than the settings name.
    """
    train = settings.train
    if not (train.heard_weight or train.heard_own_weight):
        return None
    return Listener(Teacher(teacher), settings.model.data.sampling_rate, train.heard_layers)


def base_nets(name: str, config: Config) -> tuple[SynthesizerTrn, MultiPeriodDiscriminator]:
    """Both nets of a base that is there already; a fresh discriminator where it has none.

    Args:
        name: of the base, or its folder.

    Raises:
        CheckpointError: there is no such base, or its sizes are others.
    """
    base, generator = find_base(name), SynthesizerTrn(config)
    load_state(generator, base.read_generator().tensors, source=name)
    return generator, load_discriminator(base.discriminator, config)


def build_step(settings: Settings, listener: Listener | None = None, base: str = "") -> FastStep:
    """Both nets at their beginning.

    Args:
        base: whose weights they begin with; empty for random ones.
    """
    config, train = training_config(settings), settings.train
    mx.random.seed(settings.seed)
    if base:
        generator, discriminator = base_nets(base, config)
    else:
        generator, discriminator = SynthesizerTrn(config), MultiPeriodDiscriminator(config)
        draw_decoder(generator, settings.seed)
    return FastStep(
        generator,
        discriminator,
        ExtraWeights(
            stft=train.stft_weight,
            envelope=train.envelope_weight,
            attention=train.attention_weight,
            heard=train.heard_weight,
            heard_own=train.heard_own_weight,
        ),
        mean_decay=train.mean_decay,
        compiled=settings.compiled,
        listener=listener,
    )


def rates_at(step: int, train: Train) -> Rates:
    """The curriculum: what a step, counted from 0, is done with."""
    share = step / train.steps
    rate = cosine_rate(step, train.steps, train.warmup_steps, train.last_rate)
    rising = (share - train.pull_rises_from) / (train.pull_full_from - train.pull_rises_from)
    pull = train.pull ** (1 - min(1.0, max(0.0, rising)))
    is_spoken = share >= train.spoken_from
    only_prior = step >= first_of_prior(train)
    return Rates(
        lr_g=train.lr_g * rate,
        lr_d=train.lr_d * rate,
        pull=pull,
        adversarial=step >= train.adversarial_from and not only_prior,
        spoken=round(train.spoken_share * train.batch_size) if is_spoken else 0,
        heard_own=round(train.heard_own_share * train.batch_size) if is_spoken else 0,
        only_prior=only_prior,
    )


def first_of_prior(train: Train) -> int:
    """The first step, counted from 0, in which prior and flow alone learn."""
    return max(1, math.ceil(train.only_prior_from * train.steps))


def get_state(step: FastStep, done: int) -> State:
    """Both nets' vectors."""
    return State({name: net._asdict() for name, net in step.nets.items()}, done)


def set_state(step: FastStep, state: State, settings: Settings) -> None:
    """Goes on from a state.

    Raises:
        UserError: it is of other settings.
    """
    if not same_shapes(state.trees, get_state(step, 0).trees):
        raise UserError(f"{STATE}: is of other settings; delete it to begin again")
    step.nets = {name: Net(**state.trees[name]) for name in ("g", "d")}
    judged = min(state.step, first_of_prior(settings.train)) - settings.train.adversarial_from
    step.updates = {"g": state.step, "d": max(0, judged)}


def train_stage(
    teacher: Path, work: Path, settings: Settings, clock: Clock, fit: bool = False
) -> bool:
    """Runs the stage; whether it is done.

    Args:
        fit: whether there are to be fewer steps if they do not fit into the clock's time.
    """
    path, train = work / STATE, settings.train
    saved = read_state(path) if path.is_file() else None
    if saved and saved.step >= train.steps:
        return True
    source = read_window_source(work, settings)
    if not source.held_out:
        raise UserError(f"{work / 'clips.json'}: holds no clip kept out that is long enough")
    step = build_step(settings, read_listener(teacher, settings), "" if saved else train.start_from)
    if saved:
        set_state(step, saved, settings)
        say(f"going on from step {saved.step}")
    elif fit:
        settings = fit_settings(settings, work, rehearsal(step, source, settings), clock.left)
        train = settings.train
    say(f"{source.hours:.2f} h at all speeds, {len(source.held_out)} clips kept out")
    checked, draw = {"kept out": source.checked(source.held_out)}, drawer(source, settings)
    if source.unseen:
        checked["unseen"] = source.checked(source.unseen)
    done = saved.step if saved else 0
    recent: list[dict[str, float]] = []
    late = Late()
    for windows in draw_ahead(draw, done, train.steps):
        values = begin_step(step, source, windows, done, settings)
        done += 1
        over, is_time_to_save = clock.is_over(), clock.is_time_to_save()
        is_due = done % _LOG_EVERY == 0 or done == train.steps
        recent += late.add(done, values, now=is_due or over or is_time_to_save)
        if is_due:
            means = {k: np.mean([r[k] for r in recent if k in r]) for k in recent[-1]}
            say(f"step {done}: " + "  ".join(f"{k} {v:.4g}" for k, v in means.items()))
            recent = []
        if done % _CHECK_EVERY == 0 or done == train.steps:
            for name, windows in checked.items():
                found = check(step, source, windows)
                say(f"{name}: {'  '.join(f'{k} {v:.4g}' for k, v in found.items())}")
        if over or is_time_to_save or done == train.steps:
            write_state(path, get_state(step, done))
            if over:
                return done == train.steps
    return True


def drawer(source: WindowSource, settings: Settings) -> Draw[Windows]:
    """What draws the windows of a step by its number."""
    return lambda step: source.draw(np.random.default_rng([settings.seed, step]))


def rehearsal(
    step: FastStep, source: WindowSource, settings: Settings
) -> Callable[[int, int], None]:
    """What does some steps as step number so and so would be done, and leaves no trace of them."""

    def run(number: int, count: int) -> None:
        nets, updates = dict(step.nets), dict(step.updates)
        for windows in draw_ahead(drawer(source, settings), 0, count):
            values = begin_step(step, source, windows, number, settings)
        mx.eval([v for v in values.values() if isinstance(v, mx.array)], step.nets)
        step.nets, step.updates = nets, updates

    return run


def begin_step(
    step: FastStep, source: WindowSource, windows: Windows, number: int, settings: Settings
) -> dict[str, mx.array | float]:
    """Begins an update with the curriculum of its number, and does not wait; what is logged."""
    rates = rates_at(number, settings.train)
    sound_key, noise_key = mx.random.split(step_key(settings.seed, number))
    batch = source.finish(windows, sound_key)
    noise = draw_noise(step, batch.mask, noise_key)
    parts = step(batch, noise, rates)
    mx.async_eval(parts, step.nets)
    return {**parts, "lr_g": rates.lr_g, "pull": rates.pull}


def draw_noise(step: FastStep, mask: mx.array, key: mx.array) -> mx.array:
    """`(B, T, C)`, standard normal."""
    shape = (*mask.shape[:2], step.config.model.inter_channels)
    return mx.random.normal(shape, key=key)


def check(step: FastStep, source: WindowSource, windows: Windows) -> dict[str, float]:
    """How the mean weights do on clips that nothing learns from, with their texts and without."""
    batch = source.finish(windows, mx.random.key(0))
    noise = draw_noise(step, batch.mask, mx.random.key(1))
    weights = step.generator.flat(step.nets["g"].mean)
    config, count = step.config, len(batch.wav)
    found: dict[str, mx.array] = {}
    for name in ("", " without text"):
        if name:
            only_first = mx.arange(batch.text.shape[1])[None, :, None] == 0
            batch = batch._replace(text_mask=batch.text_mask * only_first)
        out = step.generator(weights, batch, noise, 1.0, count)
        prior, said = out.prior, out.wav[count:]
        kl = losses.kl_loss(out.z_p, out.logs_q, prior.m_p, prior.logs_p, batch.mask)
        found[f"kl{name}"] = kl
        found[f"envelope{name}"] = envelope_loss(batch.wav, said, config.data.sampling_rate)
        if not name:
            found["found"] = attention_loss(prior.attention, batch.places).found
            spec = slice_segments(batch.spec, batch.starts, config.segment_frames)
            real, fake = mel_of_spectrogram(spec, config.data), out.wav[:count]
            found["mel"] = losses.mel_loss(real, mel_spectrogram(fake, config.data))
            found["stft"] = stft_loss(batch.wav, fake)
            if step.listener is not None:
                for which, wav in (("", said), (" own", fake)):
                    heard = heard_loss(step.listener, batch.wav, wav)
                    found[f"heard{which}"] = mx.mean(heard)
        mx.eval(found)
    return {name: value.item() for name, value in found.items()}
