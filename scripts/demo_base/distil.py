"""Stage `distil`: a small content encoder learns the teacher's main directions.

It hears excerpts of all clips at all speeds, through other rooms and microphones, parts of them
hidden, and gives by four linear heads the teacher's directions, the melody, a log-mel and the
phone. The heads are no part of it; the codebook is fitted with the first two. Writes `encoder/` and
`heads.safetensors`. Axes: B excerpts, N samples, S frames, C channels.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map

from mlx_vits.audio.spectrogram import _hann, mel_filterbank
from mlx_vits.checkpoints.state_dict import state_of
from mlx_vits.checkpoints.tensors import write_tensors
from mlx_vits.errors import UserError
from mlx_vits.system.files import atomic_write, make_folder
from mlx_vits.models.hubert import HubertConfig
from mlx_vits.preprocessing.features import ENCODER_RATE
from mlx_vits.preprocessing.levels import ENCODER_SCALE
from scripts.demo_base.adamw import AdamW, Net, norm, start
from scripts.demo_base.channels import Surroundings, draw_surroundings, surround
from scripts.demo_base.clips import HELD_OUT, TRAINED, frames_at_speed, read_clip_list
from scripts.demo_base.flat import Packed
from scripts.demo_base.layers import frames_of
from scripts.demo_base.running import (
    Clock,
    Late,
    State,
    cosine_rate,
    draw_ahead,
    read_state,
    same_shapes,
    step_key,
    write_state,
)
from scripts.demo_base.settings import MELODY_SIDES, Settings
from scripts.demo_base.store import read_clips, say
from scripts.demo_base.student import BANDS, Student
from scripts.demo_base.whisper import HOP

_REACH = 400 - HOP  # samples that the last frame sees beyond its hop
_WINDOW, _FLOOR = 400, 1e-7
_HIDDEN_SHARE, _SPANS, _SPAN = 0.6, (1, 5), (3, 11)  # of excerpts, how many, frames of each
_EPS = 1e-8  # of AdamW
_TEST_BATCHES, _LOG_EVERY = 3, 500


class Excerpts(NamedTuple):
    """Parts of clips.

    Attributes:
        wav: `(B, N)` int16 at 16 kHz, N = 320 S + 80.
        targets: `(B, S, P)` float32, the teacher's directions.
        melody: `(B, S, 2)` float32, see `melody.melody_of`.
        phones: `(B, S)` int32, -1 where one phone passes into another.
        mask: `(B, S, 1)` float32, 0 after a clip's end.
        hidden: `(B, S, 1)` float32, 1 where the encoder is not to see.
    """

    wav: np.ndarray
    targets: np.ndarray
    melody: np.ndarray
    phones: np.ndarray
    mask: np.ndarray
    hidden: np.ndarray


class ExcerptSource:
    """Draws excerpts from the clips of one use, at all speeds."""

    def __init__(self, work: Path, settings: Settings, use: str):
        self.settings = settings
        clips = read_clip_list(work / "clips.json")
        labels = read_clips(work / "labels.npz", "align")["labels"]
        melodies = read_clips(work / "melody.npz", "melody")["melody"]
        self.wavs: list[np.ndarray] = []
        self.targets: list[np.ndarray] = []
        self.melodies: list[np.ndarray] = []
        self.phones: list[np.ndarray] = []
        weights = []
        for number, speed in enumerate(settings.speech.speeds):
            wavs = read_clips(work / f"wav16_{number}.npz", "prepare")["wav"]
            targets = read_clips(work / f"targets_{number}.npz", "teach")["targets"]
            for clip, wav, target, label, melody in zip(
                clips, wavs, targets, labels, melodies, strict=True
            ):
                if clip.use != use:
                    continue
                at = frames_at_speed(len(target), speed, len(label))
                shown = label[at].astype(np.int32)
                steady = np.append(shown[1:] == shown[:-1], False)
                self.wavs.append(wav)
                self.targets.append(target)
                self.melodies.append(melody[at])
                self.phones.append(np.where(steady, shown, -1))
                own = settings.distil.own_speed_weight if number == 0 else 1.0
                weights.append(settings.speech.weights.get(clip.voice, 1.0) * own)
        if not weights:
            raise UserError(f"{work / 'clips.json'}: holds no clip that is {use}")
        self.shares = np.array(weights) / np.sum(weights)

    @property
    def hours(self) -> float:
        return sum(len(wav) for wav in self.wavs) / ENCODER_RATE / 3600

    def draw(self, random: np.random.Generator, hide: bool = True) -> Excerpts:
        """A batch.

        The encoder's frame i is centred on sample 320 i + 200, the teacher's on 320 i: the mean of
        two of the teacher's lies within 2.5 ms.
        """
        count, frames = self.settings.distil.batch_size, self.settings.distil.frames
        directions = self.settings.distil.directions
        wav = np.zeros((count, frames * HOP + _REACH), np.int16)
        targets = np.zeros((count, frames, directions), np.float32)
        melody = np.zeros((count, frames, MELODY_SIDES), np.float32)
        phones = np.full((count, frames), -1, np.int32)
        mask, hidden = (np.zeros((count, frames, 1), np.float32) for _ in range(2))
        for row, clip in enumerate(random.choice(len(self.wavs), count, p=self.shares)):
            start = int(random.integers(max(1, len(self.targets[clip]) - frames)))
            piece = self.wavs[clip][start * HOP : start * HOP + wav.shape[1]]
            wav[row, : len(piece)] = piece
            taught = self.targets[clip][start : start + frames + 1].astype(np.float32)
            known = len(taught) - 1
            targets[row, :known] = (taught[:-1] + taught[1:]) / 2
            melody[row, :known] = self.melodies[clip][start : start + known]
            phones[row, :known] = self.phones[clip][start : start + known]
            mask[row, :known] = 1
        if hide:
            for row in np.flatnonzero(random.random(count) < _HIDDEN_SHARE):
                for start in random.integers(0, frames, int(random.integers(*_SPANS))):
                    hidden[row, start : start + int(random.integers(*_SPAN))] = 1
        return Excerpts(wav, targets, melody, phones, mask, hidden)


def log_mel(wav: mx.array, mask: mx.array) -> mx.array:
    """`(B, 320 S + 80)` and a mask `(B, S, 1)` to `(B, S, 80)`, centred as the encoder's frames.

    Each excerpt's own loudness is taken out: the encoder is not given it.
    """
    spectrum = mx.fft.rfft(frames_of(wav, _WINDOW, HOP) * _hann(_WINDOW))
    power = mx.square(mx.real(spectrum)) + mx.square(mx.imag(spectrum))
    mel = power @ mel_filterbank(ENCODER_RATE, _WINDOW, BANDS, 0.0, ENCODER_RATE / 2).T
    log = mx.log10(mx.maximum(mel, _FLOOR))
    loudness = mx.sum(mx.mean(log, axis=2, keepdims=True) * mask, axis=1, keepdims=True)
    return log - loudness / mx.maximum(mx.sum(mask, axis=1, keepdims=True), 1)


def student_losses(
    student: Student, wav: mx.array, heard: mx.array, excerpts: Any
) -> dict[str, mx.array]:
    """The four heads' losses, not yet weighted.

    Args:
        wav: `(B, N)` float32, as recorded.
        heard: `(B, N)`, what the encoder is given.
        excerpts: an `Excerpts` of MLX arrays.
    """
    hidden = student(heard, excerpts.hidden)
    mask, count = excerpts.mask, mx.sum(excerpts.mask)

    def error(head: nn.Linear, targets: mx.array) -> mx.array:
        squares = mx.mean(mx.square(head(hidden) - targets), axis=2, keepdims=True)
        return mx.sum(squares * mask) / count

    log_probs = nn.log_softmax(student.phone_head(hidden), axis=-1)
    labels = mx.maximum(excerpts.phones, 0)[..., None]
    said = mx.take_along_axis(log_probs, labels, axis=2)
    known = (excerpts.phones >= 0)[..., None] * mask
    mel = log_mel(wav, mask)
    return {
        "directions": error(student.head, excerpts.targets),
        "melody": error(student.melody_head, excerpts.melody),
        "mel": error(student.mel_head, mel),
        "phones": -mx.sum(said * known) / mx.maximum(mx.sum(known), 1),
    }


class Distiller:
    """The student as one vector, and its update.

    Attributes:
        net: the state.
        step: updates that it has seen.
    """

    def __init__(self, settings: Settings):
        mx.random.seed(settings.seed)
        self.settings, self._student = settings, Student(settings)
        distil, self._first = settings.distil, self._student.parameters()
        self._adamw = AdamW(distil.betas, _EPS, distil.weight_decay, distil.mean_decay)
        self._packed = Packed(self._first)
        self.net, self.step = start(self._packed.pack(self._first)), 0
        self._compiled = settings.compiled
        self._run = mx.compile(self._update) if self._compiled else self._update

    def __call__(self, excerpts: Excerpts, around: Surroundings) -> dict[str, mx.array]:
        """Begins an update, and does not wait for it; the unweighted losses."""
        distil, count = self.settings.distil, self.step
        rate = cosine_rate(count, distil.steps, distil.warmup_steps, distil.last_rate)
        factors: Any = self._adamw.factors(distil.learning_rate * rate, count + 1)
        # Numbers would be constants of the compiled step.
        factors = mx.array(factors) if self._compiled else factors
        given = Excerpts(*(mx.array(part) for part in excerpts))
        room, key = tree_map(mx.array, around), step_key(self.settings.seed, count)
        net, parts = self._run(self.net, given, room, key, factors)
        self.net, self.step = Net(*net), count + 1
        mx.async_eval(parts, self.net)
        return parts

    def _update(
        self, net: Net, excerpts: Any, around: Any, key: mx.array, factors: Any
    ) -> tuple[Net, dict[str, mx.array]]:
        distil, parts = self.settings.distil, {}
        wav = excerpts.wav.astype(mx.float32) / 32768
        heard = surround(wav, around, key)

        def objective(vector: mx.array) -> mx.array:
            self._student.update(self._packed(vector))
            parts.update(student_losses(self._student, wav, heard, excerpts))
            further = distil.mel_weight * parts["mel"] + distil.phone_weight * parts["phones"]
            further = further + distil.melody_weight * parts["melody"]
            return parts["directions"] + further

        gradient = mx.grad(objective)(net.weights)
        self._student.update(self._first)  # holds no graph
        # As `mlx.optimizers.clip_grad_norm`.
        too_long = distil.largest_norm / (norm(gradient) + 1e-6)
        return self._adamw.update(net, gradient * mx.minimum(too_long, 1.0), factors), parts

    def averaged(self) -> Student:
        """The student with the mean of its weights."""
        student = Student(self.settings)
        student.update(self._packed(self.net.mean))
        return student

    def state(self) -> State:
        return State({"student": self.net._asdict()}, self.step)

    def restore(self, state: State) -> None:
        """Goes on from a state.

        Raises:
            UserError: it is of other settings.
        """
        if not same_shapes(state.trees, self.state().trees):
            raise UserError("distil.safetensors: is of other settings; delete it to begin again")
        self.net, self.step = Net(**state.trees["student"]), state.step


def distil_stage(work: Path, settings: Settings, clock: Clock) -> bool:
    """Runs the stage; whether it is done."""
    if (work / "heads.safetensors").is_file():
        return True
    source, unseen = (ExcerptSource(work, settings, use) for use in (TRAINED, HELD_OUT))
    distiller, path = Distiller(settings), work / "distil.safetensors"
    if path.is_file():
        distiller.restore(read_state(path))
        say(f"going on from step {distiller.step}")
    say(f"{source.hours:.2f} h to learn from, {unseen.hours:.2f} h kept out")

    def draw(step: int) -> tuple[Excerpts, Surroundings]:
        random = np.random.default_rng([settings.seed, step])
        return source.draw(random), draw_surroundings(random, settings.distil.batch_size)

    recent: list[dict[str, float]] = []
    late = Late()
    for excerpts, around in draw_ahead(draw, distiller.step, settings.distil.steps):
        parts = distiller(excerpts, around)
        is_due = distiller.step % _LOG_EVERY == 0 or distiller.step == settings.distil.steps
        is_over, is_time_to_save = clock.is_over(), clock.is_time_to_save()
        recent += late.add(distiller.step, parts, now=is_due or is_over or is_time_to_save)
        if is_due:
            means = {name: np.mean([r[name] for r in recent]) for name in recent[0]}
            losses = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
            say(f"step {distiller.step}: {losses}; {score(distiller.averaged(), unseen)}")
            recent = []
        if is_over or is_time_to_save:
            write_state(path, distiller.state())
            if is_over:
                return False
    write_encoder(distiller.averaged(), work)
    path.unlink(missing_ok=True)
    return True


def score(student: Student, source: ExcerptSource) -> str:
    """How well clips that are kept out are heard, undisturbed."""
    random = np.random.default_rng(1)
    errors = variance = right = known = missed = heights = 0.0
    for _ in range(_TEST_BATCHES):
        drawn = Excerpts(*(mx.array(part) for part in source.draw(random, hide=False)))
        hidden = student(drawn.wav.astype(mx.float32) * (ENCODER_SCALE / 32768), drawn.hidden)
        errors += mx.sum(mx.square(student.head(hidden) - drawn.targets) * drawn.mask).item()
        variance += mx.sum(mx.square(drawn.targets) * drawn.mask).item()
        is_known = drawn.phones >= 0
        found = mx.argmax(student.phone_head(hidden), axis=-1)
        right += mx.sum((found == drawn.phones) * is_known).item()
        known += mx.sum(is_known).item()
        voiced, height = drawn.melody[..., 0], drawn.melody[..., 1]
        sung = student.melody_head(hidden)[..., 1]
        missed += mx.sum(mx.square(sung - height) * voiced).item()
        heights += mx.sum(mx.square(height) * voiced).item()
    return (
        f"kept out: {errors / variance:.3f} unexplained, {right / max(known, 1):.1%} of phones, "
        f"{missed / max(heights, 1e-9):.3f} of the heights unexplained"
    )


def write_encoder(student: Student, work: Path) -> None:
    """Writes the content encoder as a base has it, fp16, and the heads beside it."""
    folder = work / "encoder"
    make_folder(folder)
    state = {name: a.astype(mx.float16) for name, a in state_of(student.encoder).items()}
    write_tensors(folder / "weights.safetensors", state, {"format": "pt"})
    config = student.encoder.config
    values = {field.name: getattr(config, field.name) for field in fields(HubertConfig)}
    with atomic_write(folder / "config.json") as file:
        file.write(json.dumps(values, indent=1).encode())
    heads = {name: getattr(student, name) for name in ("head", "melody_head", "phone_head")}
    leaves = {f"{n}.{k}": a for n, head in heads.items() for k, a in head.parameters().items()}
    write_tensors(work / "heads.safetensors", leaves)
