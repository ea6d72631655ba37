"""What a run speaks from, and the first sentence that the fine-tuned voice says of its own.

A run keeps the reference in `reference.json`: a recording in its folder, and what it says.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np

from mlx_vits.audio.files import write_wav
from mlx_vits.checkpoints.run_info import RunInfo
from mlx_vits.checkpoints.state_dict import state_of
from mlx_vits.checkpoints.voice_file import write_voice
from mlx_vits.config import Config
from mlx_vits.errors import UserError
from mlx_vits.finetune.options import FinetuneOptions, Screen
from mlx_vits.models.vits import SynthesizerTrn
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.preprocessing.choosing import Choice, choose_reference, read_candidates
from mlx_vits.preprocessing.languages import guess_language
from mlx_vits.report.results import NEW_SENTENCE, SAMPLES, NewSentence
from mlx_vits.synthesis.companions import (
    REFERENCE_FILE,
    StoredReference,
    vector_beside,
    write_stored_reference,
)
from mlx_vits.synthesis.loading import (
    PROMPT,
    REFERENCE,
    SPEAKER_VECTOR,
    companions_of_run,
    load,
)
from mlx_vits.synthesis.scoring import FULL_SCALE
from mlx_vits.synthesis.speaking import Speech
from mlx_vits.system.files import atomic_write, make_folder
from mlx_vits.system.memory import is_out_of_memory

# Everyday sentences with many of their language's sounds, and no sign that needs reading rules.
SENTENCES = {
    "en": "The kettle sings in the kitchen, while a soft rain taps on the window.",
    "zh": "今天早上下了一点小雨，不过现在太阳已经出来了。",
    "ja": "今朝は少し雨が降りましたが、もうすっかり晴れました。",
    "ko": "오늘 아침에는 비가 조금 왔지만, 지금은 해가 났습니다.",
    "yue": "今朝落咗少少雨，不過而家太陽已經出返嚟喇。",
}


def keep_base_voice(
    options: FinetuneOptions, generator: SynthesizerTrn, prepared: Path, screen: Screen
) -> None:
    """Write the base's own voice into a run that does not train one, with what it speaks from."""
    path = options.output / f"{options.voice}.safetensors"
    if not path.is_file():
        state = state_of(generator)
        write_voice(path, state, generator.config, info="base", name=options.voice)
    keep_references(options.output, prepared, generator.config, options.language, screen)


def keep_references(
    folder: Path, prepared: Path, config: Config, language: str, screen: Screen
) -> None:
    """Copy what the voice is to speak from into the run's folder; once for each run.

    That is the first clip, in whose style clips are re-spoken, and the one that texts are read
    from, which may be another.

    Args:
        folder: the run's.
        prepared: its clips.
        config: of the voice.
        language: of transcripts that state none.
        screen: where it is said that no clip will do.

    Raises:
        DataError: the prepared folder is damaged.
    """
    style = layout.read_text_lines(prepared / layout.TEXT_FILE, lambda _: None)[0].name
    kept = {REFERENCE: prepared / layout.WAV_FOLDER / style}
    if config.model.is_pro:
        kept[SPEAKER_VECTOR] = layout.speaker_file(prepared, style)
    for name, source in kept.items():
        if source.is_file() and not (folder / name).is_file():
            _copy(source, folder / name)
    if not (folder / REFERENCE_FILE).is_file():
        _keep_prompt(folder, prepared, style, language, screen)


def _keep_prompt(folder: Path, prepared: Path, style: str, language: str, screen: Screen) -> None:
    choice = choose_reference(read_candidates(prepared, language))
    if choice is None:
        screen.warn(
            "No clip lasts 3 to 10 s, so texts are read in the voice's timbre alone and not in its "
            "manner; `mlx-vits speak` takes another recording with --reference and "
            "--reference-text."
        )
        spoken = layout.Manifest.read(prepared)
        reference = StoredReference(REFERENCE, "", spoken.language if spoken else language)
    else:
        reference = _keep_clip(folder, prepared, style, choice)
    write_stored_reference(folder, reference)


def _keep_clip(folder: Path, prepared: Path, style: str, choice: Choice) -> StoredReference:
    chosen = choice.candidate
    if chosen.name == style:
        return StoredReference(REFERENCE, chosen.text, chosen.language)
    _copy(prepared / layout.WAV_FOLDER / chosen.name, folder / PROMPT)
    vector = layout.speaker_file(prepared, chosen.name)
    if vector.is_file():
        _copy(vector, vector_beside(folder / PROMPT))
    return StoredReference(PROMPT, chosen.text, chosen.language)


def _copy(source: Path, to: Path) -> None:
    with atomic_write(to) as file:
        file.write(source.read_bytes())


def say_new_sentence(folder: Path, version: str, screen: Screen) -> NewSentence | None:
    """Let the voice that a run has written say a sentence that it was never trained on.

    It is loaded as a user would load it, and the sound is written among the run's samples. Where
    something that speech needs is missing, that is said and nothing else happens.

    Args:
        folder: the run's.
        version: of the voice.
        screen: where it is said why nothing was spoken.

    Returns:
        What was said, or None.
    """
    if companions_of_run(folder, RunInfo.read(folder), version).gpt is None:
        screen.say(
            "No new sentence was spoken: the base has no T2S model, which turns text into speech; "
            f"`mlx-vits download {version}` fetches one."
        )
        return None
    try:
        voice = load(folder)
        reference = voice.speaker.companions.reference or StoredReference(REFERENCE)
        language = sentence_language(reference)
        text = SENTENCES[language]
        speech = voice.speak(text, language=language, split="cut0", pause=0.0)
        _write(folder, speech)
    except UserError as error:
        screen.say(f"No new sentence was spoken: {error}")
        return None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        screen.say("No new sentence was spoken: memory ran out; `mlx-vits speak` may still do it.")
        return None
    for warning in speech.warnings:
        screen.warn(warning)
    return NewSentence(
        text=text,
        language=language,
        seconds=round(len(speech.wav) / speech.sample_rate, 2),
        largest_sample=float(np.abs(speech.wav).max(initial=0.0)) * FULL_SCALE,
        reference_text=reference.text,
        warnings=speech.warnings,
    )


def speak_command(folder: Path) -> str:
    """Return the command that makes a run speak, as it is typed where the user is."""
    here = Path.cwd().resolve()
    shown = folder.relative_to(here) if folder.is_relative_to(here) else folder
    return f'mlx-vits speak {shlex.quote(str(shown))} "…" -o hello.wav'


def _write(folder: Path, speech: Speech) -> None:
    make_folder(folder / SAMPLES)
    write_wav(folder / SAMPLES / NEW_SENTENCE, speech.wav, speech.sample_rate)


def sentence_language(reference: StoredReference) -> str:
    """Return the language of `SENTENCES` for a voice of a language such as "all_zh" or "auto"."""
    code = reference.language.lower().removeprefix("all_")
    if code in SENTENCES:
        return code
    guessed = guess_language(reference.text)
    return "yue" if code == "auto_yue" and guessed == "zh" else guessed
