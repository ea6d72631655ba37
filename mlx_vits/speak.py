"""`mlx-vits speak`, also `python -m mlx_vits.speak`: a text read aloud, into a file or played."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import typer

import mlx_vits
from mlx_vits.audio.playing import Player
from mlx_vits.audio.writing import SoundFile
from mlx_vits.checkpoints.run_info import find_run
from mlx_vits.errors import Interrupted, UserError
from mlx_vits.report.terminal import report_errors
from mlx_vits.synthesis.companions import StoredReference
from mlx_vits.synthesis.pauses import split_pauses
from mlx_vits.synthesis.request import SpeechRequest
from mlx_vits.synthesis.sampling import Sampling
from mlx_vits.synthesis.speaking import ask, stream
from mlx_vits.synthesis.text_marks import is_spoken
from mlx_vits.synthesis.voice import Voice
from mlx_vits.system.text_files import decode_text, read_text

_LINE_NAME = "{:03d}.wav"


@report_errors
def main(
    voice: str = typer.Argument(
        ..., help="A run's folder or its name under runs/, a base's name, or a voice's file."
    ),
    text: str | None = typer.Argument(None, help="What to say; see --file for longer texts."),
    file: str | None = typer.Option(
        None, "--file", "-f", help="Text file to read, UTF-8; - for standard input."
    ),
    output: str | None = typer.Option(
        None,
        "--output",
        "-o",
        help="File to write (.wav, .flac, .ogg, .opus, .mp3), or FOLDER/ for a file a line.",
    ),
    play: bool = typer.Option(False, "--play", help="Play the speech."),
    stream_: bool = typer.Option(
        False, "--stream", help="Make each sentence in chunks, so that sound begins sooner."
    ),
    language: str | None = typer.Option(
        None, help="Language of the text: en, zh, ja, ko, yue, all_zh, ..., auto."
    ),
    reference: Path | None = typer.Option(  # noqa: B008
        None, help="Recording of 3 to 10 s to speak like; the voice's own unless given."
    ),
    reference_text: str | None = typer.Option(None, help="What that recording says."),
    reference_language: str | None = typer.Option(None, help="Its language."),
    aux_reference: list[Path] | None = typer.Option(  # noqa: B008
        None, help="Further recording, whose timbre is averaged in; may be repeated."
    ),
    gpt: Path | None = typer.Option(  # noqa: B008
        None, help="T2S model (.ckpt or folder); the voice's or its base's unless given."
    ),
    bits: int | None = typer.Option(
        None, help="Hold the T2S model's weights in 8 or 4 bits; see docs/speaking.md."
    ),
    content_encoder: Path | None = typer.Option(  # noqa: B008
        None, help="Folder of the content encoder; the base's unless given."
    ),
    lexicon: Path | None = typer.Option(  # noqa: B008
        None, help="File of words and their phonemes, one a line."
    ),
    speed: float = typer.Option(1.0, help="Speed, 0.25 to 4; 2 halves the length."),
    pause: float = typer.Option(
        SpeechRequest.fragment_interval, help="Seconds of silence after each sentence."
    ),
    split: str = typer.Option(
        SpeechRequest.text_split_method, help="How the text is cut: cut0 to cut5."
    ),
    top_k: int = typer.Option(Sampling.top_k, help="Codes to draw from, at most."),
    top_p: float = typer.Option(Sampling.top_p, help="Probability to draw from, at most."),
    temperature: float = typer.Option(
        Sampling.temperature, help="Above 1 livelier, below 1 steadier."
    ),
    repetition_penalty: float = typer.Option(
        Sampling.repetition_penalty, help="Above 1: against repetition."
    ),
    seed: int = typer.Option(0, help="The same seed gives the same sound."),
    verify: bool = typer.Option(
        False, "--verify", help="Check each sentence with Whisper, and say it again if need be."
    ),
    force: bool = typer.Option(False, "--force", help="Replace a file that is there already."),
) -> None:
    """Read a text aloud.

    Exit status: 0, spoken; 1, something is missing or wrong, with what to do.
    """
    lines = _lines(text, file)
    if not output and not play:
        raise UserError("say where the speech goes: -o FILE, -o FOLDER/ or --play")
    loaded = mlx_vits.load(find_run(voice), content_encoder=content_encoder, gpt=gpt, bits=bits)
    speaker = loaded.speaker
    if lexicon is not None:
        speaker.use_lexicon(lexicon)
    if verify:
        speaker.verify_with_whisper()
    request, given = ask(
        speaker,
        text="",
        language=language,
        reference=reference,
        reference_text=reference_text,
        reference_language=reference_language,
        top_k=top_k,
        top_p=top_p,
        temperature=temperature,
        repetition_penalty=repetition_penalty,
        speed=speed,
        pause=pause,
        split=split,
        seed=seed,
        return_fragment=not stream_,
        streaming_mode=stream_,
    )
    # All at once, so that a name that is taken is said before anything is spoken.
    jobs = [
        (part, SoundFile(path, loaded.sample_rate, overwrite=force) if path else None)
        for part, path in _parts(lines, output)
    ]
    for part, sound_file in jobs:
        job = _Job(loaded, replace(request, text=part), given, aux_reference or [])
        job.speak(sound_file, Player(loaded.sample_rate) if play else None)


class _Job:
    """Speak a text, and say how far it is."""

    def __init__(
        self,
        voice: Voice,
        request: SpeechRequest,
        reference: StoredReference | None,
        auxiliary: list[Path],
    ):
        self._rate, self._length = voice.sample_rate, len(request.text)
        self._begun, self._samples, self._done = time.monotonic(), 0, 0
        self._noticed: list[str] = []
        self._pieces = stream(
            voice.speaker, request, reference, auxiliary, warn=self._noticed.append
        )

    def speak(self, file: SoundFile | None, player: Player | None) -> None:
        sinks = [sink for sink in (file, player) if sink is not None]
        try:
            with ExitStack() as stack:
                for sink in sinks:
                    stack.enter_context(sink)
                for piece in self._pieces:
                    for sink in sinks:
                        sink.write(piece.wav)
                    self._samples += len(piece.wav)
                    self._done += sum(len(sentence.text) for sentence in piece.sentences)
                    self._report(at_end_of_sentence=bool(piece.sentences))
        except KeyboardInterrupt as error:
            if file is None or not file.samples:
                raise
            number = error.number if isinstance(error, Interrupted) else signal.SIGINT
            raise Interrupted(f"stopped; {self._kept(file)}", number) from error
        except UserError:
            self._report()
            if file is not None and file.samples:
                _tell(f"! {self._kept(file)}")
            raise
        self._report()
        passed = time.monotonic() - self._begun
        seconds = self._samples / self._rate
        where = "played" if file is None else file.path
        _tell(f"{where}: {seconds:.2f} s, made in {passed:.2f} s", sys.stdout)

    def _kept(self, file: SoundFile) -> str:
        return f"{file.path} holds what was spoken until then, {file.samples / self._rate:.1f} s"

    def _report(self, *, at_end_of_sentence: bool = False) -> None:
        for warning in dict.fromkeys(self._noticed):
            _tell(f"! {warning}")
        self._noticed.clear()
        if not at_end_of_sentence or self._done >= self._length:
            return
        passed = time.monotonic() - self._begun
        left = passed / self._done * (self._length - self._done)
        _tell(
            f"{self._done}/{self._length} characters  {self._samples / self._rate:.1f} s spoken  "
            f"{left:.0f} s left"
        )


def _tell(text: str, file: TextIO | None = None) -> None:
    """Print on standard error, or nowhere once its reader is gone: speech goes on."""
    file = file or sys.stderr
    try:
        print(text, file=file, flush=True)
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


def _parts(lines: list[str], output: str | None) -> list[tuple[str, Path | None]]:
    """Return each text to speak, and the file for it."""
    if not output or not output.endswith("/"):
        return [("\n".join(lines), Path(output) if output else None)]
    spoken = [line for line in lines if any(isinstance(p, str) for p in split_pauses(line))]
    return [
        (line, Path(output) / _LINE_NAME.format(number))
        for number, line in enumerate(spoken, start=1)
    ]


def _lines(text: str | None, file: str | None) -> list[str]:
    """Return the lines that have something to say.

    Raises:
        UserError: no text is given, or two, or it cannot be read.
    """
    if (text is None) == (file is None):
        raise UserError("give either a text, or --file FILE (- for standard input)")
    if file is not None:
        text = _read_input() if file == "-" else read_text(Path(file))
    lines = [line for line in (text or "").splitlines() if is_spoken(line)]
    if not lines:
        raise UserError("the text has nothing to speak; give at least one word")
    return lines


def _read_input() -> str:
    if sys.stdin is None:  # closed by the shell
        raise UserError("there is no standard input; give a text, or --file FILE")
    if sys.stdin.isatty():
        _tell("Write the text, and end it with Ctrl-D on a line of its own.")
    return decode_text(sys.stdin.buffer.read(), "standard input")


if __name__ == "__main__":
    typer.run(main)
