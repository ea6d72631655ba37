"""`config.json`: everything that decides what base comes out, beside the recordings themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from mlx_vits.config import Config, read_json_table
from mlx_vits.errors import UserError
from mlx_vits.models.hubert import HubertConfig

CONFIG = Path(__file__).with_name("config.json")
MELODY_SIDES = 2  # voiced or not, and the height
Section = TypeVar("Section")


@dataclass(frozen=True)
class Speech:
    """Which clips are trained on.

    Attributes:
        weights: how often a clip of each voice folder is drawn, relative to the others'.
        unseen_speakers: speakers in those folders that nothing is trained on.
        unseen_voices: further folders, only measured on.
        held_out_share: of each speaker's texts; every clip of such a text is kept out.
        shortest_frames, longest_frames: of 20 ms; other clips are left out.
        speeds: at which every clip is heard, the first 1: pitch and formants move with them.
    """

    weights: dict[str, float]
    unseen_speakers: tuple[str, ...]
    unseen_voices: tuple[str, ...]
    held_out_share: float
    shortest_frames: int
    longest_frames: int
    speeds: tuple[float, ...]


@dataclass(frozen=True)
class Align:
    """Where the phones of a transcript lie.

    Attributes:
        hidden, dropout: of the classifier.
        batch_size: clips.
        learning_rate, weight_decay: of AdamW, in every round.
        ctc_epochs: of the start.
        rounds, round_epochs: realignments after it, and epochs in each.
        label_smoothing: of the rounds.
        pause_penalty: natural logarithm, of a pause where the text has no mark.
        prior_weight: power of the phones' frequencies that scores are divided by.
    """

    hidden: int
    dropout: float
    batch_size: int
    learning_rate: float
    weight_decay: float
    ctc_epochs: int
    rounds: int
    round_epochs: int
    label_smoothing: float
    pause_penalty: float
    prior_weight: float


@dataclass(frozen=True)
class Distil:
    """How the content encoder learns from the teacher.

    Attributes:
        steps, batch_size, frames: updates, excerpts in each, frames of an excerpt.
        learning_rate: its highest, reached after `warmup_steps`, a cosine down to the share
            `last_rate`.
        betas, weight_decay: of AdamW.
        largest_norm: of the gradient.
        mean_decay: of the running mean of the weights, which is what is kept.
        directions: of the teacher's features that are learnt.
        mel_weight, phone_weight, melody_weight: of the three further heads.
        own_speed_weight: how often a clip at its own speed is drawn, relative to any other speed.
    """

    steps: int
    batch_size: int
    frames: int
    learning_rate: float
    warmup_steps: int
    last_rate: float
    betas: tuple[float, ...]
    weight_decay: float
    largest_norm: float
    mean_decay: float
    directions: int
    mel_weight: float
    phone_weight: float
    melody_weight: float
    own_speed_weight: float


@dataclass(frozen=True)
class Codebook:
    """How `ssl_proj` and the codebook are fitted.

    Attributes:
        entries: codes.
        phone_weight, melody_weight: variances of the phone part and of the melody, relative to the
            distilled part's.
        probe_epochs, probe_batch_size, probe_learning_rate: of the linear phone probe.
        iterations: of k-means.
    """

    entries: int
    phone_weight: float
    melody_weight: float
    probe_epochs: int
    probe_batch_size: int
    probe_learning_rate: float
    iterations: int


@dataclass(frozen=True)
class Train:
    """How the base is trained. Shares are of all steps.

    Attributes:
        start_from: name or folder of a base whose weights training begins with; empty for random
            ones.
        steps, batch_size, frames: updates, clips in each, frames of the longest window.
        shortest_window: frames of the shortest window.
        phonemes: at most so many are read of a text.
        segment_size: samples that are decoded of each window.
        lr_g, lr_d: highest learning rates, reached after `warmup_steps`, a cosine down to the
            share `last_rate`.
        adversarial_from: step from which the discriminator takes part.
        pull: share of the KL's gradient that reaches the posterior, at first; it rises
            exponentially from the share `pull_rises_from` to 1 at the share `pull_full_from`.
        spoken_from: share from which the prior is decoded as well, of `spoken_share` of the clips.
        only_prior_from: share from which prior and flow alone learn, and the posterior is no longer
            decoded; 1 for never.
        mean_decay: of the running mean of the weights, which is what is kept.
        other_speeds_weight: how often a clip is drawn at any other speed, relative to its own.
        lost_codes, lost_phonemes: shares that are hidden from the prior.
        misheard: how far codes stray, least and most, in standard deviations of the codebook; see
            `windows.WindowSource`. 1.2 makes codes of clips that the content encoder was trained on
            as uncertain as those of the same speakers' other clips, 1.5 as unseen speakers'.
        style_noise: how far the prior's style strays at most, in standard deviations of the styles
            of a batch.
        no_text, whole_text: shares of windows with none of their text but its first phoneme, and
            with all of it; the others have about the text they speak.
        further_texts: share of the windows with all their text that have other clips' around it.
        stft_weight, envelope_weight, attention_weight: of the losses in `losses.py`.
        heard_weight, heard_own_weight: of the loss in `heard.py`, on what the prior says and on
            what the posterior says of `heard_own_share` of the clips; from `spoken_from`.
        heard_layers: of the teacher, after how many of them what is heard is compared.
    """

    start_from: str
    steps: int
    batch_size: int
    frames: int
    shortest_window: int
    phonemes: int
    segment_size: int
    lr_g: float
    lr_d: float
    warmup_steps: int
    last_rate: float
    adversarial_from: int
    pull: float
    pull_rises_from: float
    pull_full_from: float
    spoken_from: float
    spoken_share: float
    only_prior_from: float
    mean_decay: float
    other_speeds_weight: float
    lost_codes: float
    lost_phonemes: float
    misheard: tuple[float, ...]
    style_noise: float
    no_text: float
    whole_text: float
    further_texts: float
    stft_weight: float
    envelope_weight: float
    attention_weight: float
    heard_weight: float
    heard_own_weight: float
    heard_own_share: float
    heard_layers: tuple[int, ...]


@dataclass(frozen=True)
class Settings:
    """The whole file.

    Attributes:
        source: the file.
        seed: of everything that is drawn.
        compiled: whether the steps of `distil` and `train` run through `mx.compile`; on CUDA
            nothing is fused, see `mlx_vits.accel.compilation`.
        sha256: of each voice folder's clips and of the teacher; what is said where they differ.
        encoder: sizes of the content encoder.
        model: sizes of the base, as its own `config.json` will have them.
    """

    source: Path
    seed: int
    compiled: bool
    sha256: dict[str, str]
    speech: Speech
    align: Align
    distil: Distil
    codebook: Codebook
    train: Train
    encoder: HubertConfig
    model: Config


def read_settings(path: Path = CONFIG) -> Settings:
    """Reads the settings.

    Raises:
        UserError: the file cannot be read, or a key is missing, unknown, or of the wrong kind.
    """
    values = read_json_table(path)
    expected = {field.name for field in dataclasses.fields(Settings)} - {"source"}
    _check_keys(values, expected, str(path))
    sections = {"speech": Speech, "align": Align, "distil": Distil}
    sections |= {"codebook": Codebook, "train": Train}
    settings = Settings(
        source=path,
        seed=values["seed"],
        compiled=values["compiled"],
        sha256=values["sha256"],
        encoder=HubertConfig.from_dict(values["encoder"], source=f"{path}: encoder"),
        model=Config.from_dict(values["model"], source=f"{path}: model"),
        **{
            name: _section(kind, values[name], f"{path}: {name}") for name, kind in sections.items()
        },
    )
    _check(settings)
    return settings


def _section(kind: type[Section], values: Any, source: str) -> Section:
    if not isinstance(values, Mapping):
        raise UserError(f"{source}: is not a table; put the shipped file back")
    hints = get_type_hints(kind)
    _check_keys(values, set(hints), source)
    fitted = {}
    for name, value in values.items():
        value = tuple(value) if isinstance(value, list) else value
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        fits = {int: type(value) is int, float: is_number, str: isinstance(value, str)}.get(
            hints[name]
        )
        if fits is None:
            fits = isinstance(value, dict if "dict" in str(hints[name]) else tuple)
        if not fits:
            raise UserError(f"{source}: {name} is {value!r}; put the shipped file back")
        fitted[name] = value
    return kind(**fitted)


def _check_keys(values: Mapping[str, Any], expected: set[str], source: str) -> None:
    for name in sorted(set(values) ^ expected):
        what = "lacks" if name in expected else "has an unknown key"
        raise UserError(f"{source}: {what} {name}; put the shipped file back")


def _check(settings: Settings) -> None:
    """Refuses settings that contradict each other."""
    dims, speech, train = settings.model.reduced_dims, settings.speech, settings.train
    faults = {
        "compiled is neither true nor false": not isinstance(settings.compiled, bool),
        "ssl_dim and hidden_size differ": dims.ssl_dim != settings.encoder.hidden_size,
        "codebook_size and entries differ": dims.codebook_size != settings.codebook.entries,
        "directions and melody exceed hidden_size": (
            settings.distil.directions + MELODY_SIDES > dims.ssl_dim
        ),
        "the first speed is not 1": not speech.speeds or speech.speeds[0] != 1,
        "a voice is both trained on and unseen": set(speech.weights) & set(speech.unseen_voices),
        "frames is odd": train.frames % 2,
        "segment_size is no multiple of hop_length, or longer than a window": (
            train.segment_size % settings.model.data.hop_length
            or train.segment_size // settings.model.data.hop_length > train.shortest_window
        ),
        "heard_layers do not rise from 1": (
            not train.heard_layers
            or train.heard_layers[0] < 1
            or list(train.heard_layers) != sorted(set(train.heard_layers))
        ),
        "heard_own_share is no share": not 0 <= train.heard_own_share <= 1,
        "the prior learns alone before it is decoded, or where none of a batch is": (
            train.only_prior_from < 1
            and (
                train.only_prior_from < train.spoken_from
                or round(train.spoken_share * train.batch_size) < 1
            )
        ),
        "shortest_window exceeds frames": train.shortest_window > train.frames,
        "misheard is not a range from 0": (
            len(train.misheard) != 2 or not 0 <= train.misheard[0] <= train.misheard[1]
        ),
        "no_text and whole_text exceed 1": not 0 <= train.no_text <= 1 - train.whole_text <= 1,
    }
    for fault, found in faults.items():
        if found:
            raise UserError(f"{settings.source}: {fault}; mend it")
