"""Makes the speech: prepares each minute, trains each cell, speaks the held-out clips.

Needs nothing but the product. Each set of speech is a folder of 16-bit FLAC with `run.json`, which
is written last: a folder without it is made again.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import soundfile

from eval_demo.pitch import PITCH_RATE, compare_pitch, track_pitch
from eval_demo.recipes import choose_recipe
from eval_demo.settings import BASE, RECORDING, TRAINED, Minute, Run, Settings, read_texts
from mlx_vits.audio.files import read_audio, resample
from mlx_vits.checkpoints.base import find_base, load_generator
from mlx_vits.config import Config
from mlx_vits.errors import TrainingStopped, UserError
from mlx_vits.system.files import atomic_write, make_folder
from mlx_vits.finetune.nets import load_nets, read_base
from mlx_vits.models.vits import SynthesizerTrn
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.preprocessing.prepare import PrepareOptions, prepare_voice
from mlx_vits.synthesis.scoring import FULL_SCALE, Listening, Score, read_listening, score_voice
from mlx_vits.synthesis.voice import Voice
from mlx_vits.training.batches import PreparedVoice
from mlx_vits.training.blending import Blend
from mlx_vits.training.regularization import relative_drift, take_anchor
from mlx_vits.training.vits_trainer import freeze_for

RESULT = "run.json"
SPEECH = "speech"
HEARD_RATE = 16000  # Hz, of what is kept for recognisers: all of them listen at it

Say = Callable[[str], None]


class Speech(NamedTuple):
    """One clip, spoken or recorded.

    Attributes:
        name: of the clip.
        text: what is said.
        wav: `(N,)` float32 at the voice's rate, neither normalised nor clipped.
        mel_distance: to the recording; 0 for the recording itself.
    """

    name: str
    text: str
    wav: np.ndarray
    mel_distance: float


def speech_folder(output: Path, run: Run) -> Path:
    """Where a run's speech lies."""
    return output / SPEECH / run.name


def read_result(output: Path, run: Run, settings: Settings) -> dict[str, Any] | None:
    """What a finished run says of itself; None where it is not finished.

    Raises:
        UserError: it is damaged, or was made with other settings than the present ones.
    """
    path = speech_folder(output, run) / RESULT
    if not path.is_file():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        made_with = result["made_with"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is damaged; take its folder away and run it again") from error
    if made_with != settings.made_with(run):
        raise UserError(
            f"{path}: was made with another base, other clips or other settings than "
            f"{settings.source.name} has; take its folder away and run it again"
        )
    return result


def perform_runs(
    settings: Settings,
    voices: Path,
    output: Path,
    runs: list[Run],
    say: Say,
    seconds: float = math.inf,
) -> int:
    """Makes those of the runs that are not finished.

    Args:
        voices: the folder of voices.
        output: of the evaluation.
        seconds: after so many, no further run is begun.

    Returns:
        How many are still to be made.

    Raises:
        UserError: clips or base cannot be used.
    """
    started = time.monotonic()
    missing = [run for run in runs if read_result(output, run, settings) is None]
    for count, run in enumerate(missing):
        if time.monotonic() - started > seconds:
            say(f"{len(missing) - count} of {len(runs)} runs are left; start this again.")
            return len(missing) - count
        begun = time.monotonic()
        _perform(settings, run, _prepare(settings, voices, output, run.minute), output)
        say(f"{run.name}: {time.monotonic() - begun:.0f} s ({len(missing) - count - 1} left)")
    return 0


def _prepare(settings: Settings, voices: Path, output: Path, name: str) -> Path:
    """The prepared folder of a minute; made once, and taken as it is after that.

    Processes that share the work may each take one that is made; one of them has to make it.
    """
    folder, minute = output / "prepared" / name, settings.minutes[name]
    base = find_base(str(settings.base))
    clips = output / "clips" / name
    _gather(clips, voices / minute.folder, minute)
    make_folder(folder.parent)
    config = base.read_generator().config
    return prepare_voice(clips, folder, base, config, PrepareOptions(strict=True))


def _gather(folder: Path, source: Path, minute: Minute) -> None:
    """Puts a minute's clips into a folder of their own, as the product takes them."""
    make_folder(folder)
    texts = read_texts(source)
    names = (*minute.train, *minute.held_out)
    for name in names:
        if not (folder / name).is_file():
            shutil.copyfile(source / name, folder / name)
    lines = "".join(f"{name}\t{texts[name]}\n" for name in names)
    _write_changed(folder / "transcripts.tsv", lines)
    _write_changed(folder / "held_out.txt", "".join(f"{name}\n" for name in minute.held_out))


def _write_changed(path: Path, text: str) -> None:
    """Leaves a file that says so already alone: another process may be reading it."""
    wanted = text.encode()
    if path.is_file() and path.read_bytes() == wanted:
        return
    with atomic_write(path) as file:
        file.write(wanted)


def _perform(settings: Settings, run: Run, prepared: Path, output: Path) -> None:
    begun = time.monotonic()
    found: dict[str, Any] = {}
    if run.cell == TRAINED:
        speech = _trained_recordings(prepared)
    elif run.cell == RECORDING:
        speech = _held_out_recordings(prepared, _config(settings))
    elif run.cell == BASE:
        file = find_base(str(settings.base)).read_generator()
        speaker = Speaker(load_generator(file), prepared)
        speech = speaker.speak()
    else:
        speech, found = _fine_tune(settings, run, prepared)
    result = {
        "made_with": settings.made_with(run),
        "device": str(mx.default_device().type).rsplit(".", 1)[-1],
        "seconds": round(time.monotonic() - begun, 1),
        **found,
    }
    _write(settings, run, prepared, speech, result, speech_folder(output, run))


def _config(settings: Settings) -> Config:
    return find_base(str(settings.base)).read_generator().config


class Speaker:
    """Speaks a minute's held-out clips with a generator as it is at the moment.

    The style is that of the first training clip, for every voice alike.
    """

    def __init__(self, model: SynthesizerTrn, prepared: Path):
        self.voice = Voice(model)
        self.listening: Listening = read_listening(prepared, model.config)
        reference = prepared / layout.WAV_FOLDER / self.listening.reference
        self.reference = self.voice.reference_spectrogram(read_audio(reference).wav)

    def speak(self) -> list[Speech]:
        """All held-out clips."""
        clips, score = self.listening.clips, self.score()
        pairs = zip(clips, score.clips, strict=True)
        return [Speech(c.name, c.text, s.wav, s.mel_distance) for c, s in pairs]

    def score(self, only: tuple[str, ...] = ()) -> Score:
        """The product's own score, of all held-out clips or of some."""
        clips = [clip for clip in self.listening.clips if not only or is_among(clip.name, only)]
        return score_voice(self.voice, clips, self.reference, self.listening.speaker_vector)


def is_among(name: str, among: tuple[str, ...]) -> bool:
    """Whether a prepared clip is one of those named, whatever their endings."""
    return Path(name).stem in {Path(other).stem for other in among}


def _fine_tune(settings: Settings, run: Run, prepared: Path) -> tuple[list[Speech], dict[str, Any]]:
    """Trains one cell; a voice that breaks speaks nothing, and says at which step it broke."""
    recipe = choose_recipe(settings, run, find_base(str(settings.base)))
    training = recipe.training
    file = read_base(recipe.base, training.segment_size)
    nets = load_nets(recipe.base, file, training)
    freeze_for(nets.generator, training.train)
    anchor = take_anchor(nets.generator)
    voice = PreparedVoice(prepared, file.config)
    blend = Blend(nets.generator, training.blend, training.blend_prior)
    trainer = recipe.trainer(nets.generator, nets.discriminator, voice, training, anchor)
    speaker = Speaker(blend.model(), prepared)
    is_probed = run.minute == settings.ablation  # other minutes may well train on these clips
    probes = [_probe(speaker, settings, 0)] if is_probed else []
    found: dict[str, Any] = {"probes": probes}
    try:
        for record in trainer.steps():
            step = record.place.step
            if is_probed and step % settings.probe_every == 0:
                blend.model()  # brings what the speaker holds up to date
                probes.append(_probe(speaker, settings, step))
    except TrainingStopped as stopped:
        return [], found | {"stopped": str(stopped)}
    drift = relative_drift(blend.model(), anchor)
    found["drift"] = sum(drift.values()) / len(drift)
    return speaker.speak(), found


def _probe(speaker: Speaker, settings: Settings, step: int) -> dict[str, float]:
    score = speaker.score(settings.probed)
    return {"step": step, "largest_sample": score.largest_sample, "rms": score.rms}


def _trained_recordings(prepared: Path) -> list[Speech]:
    lines = layout.read_text_lines(prepared / layout.TEXT_FILE)
    folder = prepared / layout.WAV_FOLDER
    return [Speech(line.name, line.text, read_audio(folder / line.name).wav, 0.0) for line in lines]


def _held_out_recordings(prepared: Path, config: Config) -> list[Speech]:
    clips = read_listening(prepared, config).clips
    return [Speech(clip.name, clip.text, clip.wav, 0.0) for clip in clips]


def _write(
    settings: Settings,
    run: Run,
    prepared: Path,
    speech: list[Speech],
    result: dict[str, Any],
    folder: Path,
) -> None:
    """Writes the speech and, last, what is known of it."""
    config = _config(settings)
    rate = config.data.sampling_rate
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    recordings = {c.name: c.wav for c in read_listening(prepared, config).clips}
    clips: list[dict[str, Any]] = []
    for clip in speech:
        if not np.isfinite(clip.wav).all():
            result = {"stopped": f"{clip.name} is no longer sound", **result}
            clips = []
            break
        clips.append(_describe(clip, recordings.get(clip.name, clip.wav), rate))
        kept = rate if is_among(clip.name, settings.pictured) else HEARD_RATE
        name = Path(clip.name).with_suffix(".flac").name
        soundfile.write(folder / name, _as_int16(resample(clip.wav, rate, kept)), kept)
    with atomic_write(folder / RESULT) as out:
        out.write(json.dumps(result | {"clips": clips}, indent=1).encode())


def _describe(clip: Speech, recording: np.ndarray, rate: int) -> dict[str, Any]:
    tracks = [track_pitch(resample(wav, rate, PITCH_RATE)) for wav in (recording, clip.wav)]
    pitch = compare_pitch(*tracks)
    return {
        "name": clip.name,
        "text": clip.text,
        "largest_sample": float(np.abs(clip.wav).max()) * FULL_SCALE,
        "rms": float(np.sqrt(np.mean(np.square(clip.wav, dtype=np.float64)))) * FULL_SCALE,
        "mel_distance": clip.mel_distance,
        "f0_correlation": pitch.correlation,
        "f0_voiced_kept": pitch.voiced_kept,
    }


def _as_int16(wav: np.ndarray) -> np.ndarray:
    return np.round(np.clip(wav, -1.0, 1.0) * FULL_SCALE).astype(np.int16)
