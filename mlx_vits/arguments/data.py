"""Options that several commands have: the base, clips, and recordings to be cut."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from mlx_vits.arguments.groups import Group, option
from mlx_vits.preprocessing.clips import ClipOptions
from mlx_vits.preprocessing.recognition import DEFAULT_MODEL
from mlx_vits.preprocessing.slicer import FLAGS, SliceSettings
from mlx_vits.training.vits_trainer import VITSTrainingConfig

BaseName = Annotated[
    str | None,
    option("Base: a name under weights/, or its folder.", "demo for demo, else v2, else demo"),
]
ContentEncoder = Annotated[
    Path | None, option("Folder of the content encoder (chinese-hubert-base).")
]
SpeakerEncoder = Annotated[
    Path | None, option("Speaker encoder of v2Pro and v2ProPlus (ERes2NetV2).")
]
Language = Annotated[
    str | None, option("Language of the speech.", "en; recognised speech tells its own")
]
Transcripts = Annotated[
    Path | None, option("File of the transcripts, if it does not lie beside the clips.")
]
HeldOut = Annotated[
    int | None,
    option(
        "How many of the last clips are only listened to, not trained on.",
        "a tenth of 4 or more, at most 20",
        min=0,
    ),
]
BatchSize = Annotated[
    int | None,
    option("Clips per batch.", VITSTrainingConfig.batch_size, min=1),
]


@dataclass(frozen=True)
class ClipArguments(Group):
    """The clips of a voice; fields of `PrepareOptions` and of `FinetuneOptions`."""

    panel = "Clips"

    language: Language = None
    transcripts: Transcripts = None
    held_out: HeldOut = None
    strict: Annotated[
        bool | None,
        option(
            "Refuse a clip that cannot be used, instead of leaving it out.",
            None,
            "--strict/--no-strict",
        ),
    ] = None


@dataclass(frozen=True)
class RecordingArguments(Group):
    """How recordings become clips: the recogniser, and fields of `SliceSettings`."""

    panel = "Recordings"

    asr_model: Annotated[
        str | None,
        option("Whisper model that writes missing transcripts.", DEFAULT_MODEL),
    ] = None
    threshold_db: Annotated[
        float | None,
        option(
            "Recordings are cut where they are quieter than this, in dB re full scale.",
            f"{SliceSettings.threshold_db:g}, or as before",
            FLAGS["threshold_db"],
            min=-100,
            max=0,
        ),
    ] = None
    min_length_ms: Annotated[
        int | None,
        option(
            "Shortest slice, in ms.",
            f"{SliceSettings.min_length_ms}, or as before",
            FLAGS["min_length_ms"],
            min=40,
        ),
    ] = None
    min_interval_ms: Annotated[
        int | None,
        option(
            "Shortest pause to cut at, in ms.",
            f"{SliceSettings.min_interval_ms}, or as before",
            FLAGS["min_interval_ms"],
            min=40,
        ),
    ] = None
    max_silence_ms: Annotated[
        int | None,
        option(
            "Longest silence left at either end of a slice, in ms.",
            f"{SliceSettings.max_silence_ms}, or as before",
            FLAGS["max_silence_ms"],
            min=10,
        ),
    ] = None

    def options(self, clips: ClipArguments) -> ClipOptions:
        """How recordings become the clips that are described by `clips`."""
        slicing = self.given()
        model = slicing.pop("asr_model", DEFAULT_MODEL)
        return ClipOptions(clips.language, model, slicing=slicing, strict=bool(clips.strict))
