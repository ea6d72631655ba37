"""`mlx_vits.load`: from a name or a path to a voice."""

from __future__ import annotations

from pathlib import Path

from mlx_vits.checkpoints.base import (
    find_base,
    load_content_encoder,
    load_generator,
    weights_home,
)
from mlx_vits.checkpoints.run_info import RunInfo, is_run
from mlx_vits.checkpoints.voice_file import GENERATOR_FILE, read_voice
from mlx_vits.config import VERSIONS
from mlx_vits.errors import CheckpointError
from mlx_vits.nn.threads import on_lasting_thread
from mlx_vits.preprocessing.prepared import read_speaker_vector
from mlx_vits.synthesis.voice import Voice
from mlx_vits.system.files import given_path

REFERENCE = "reference.wav"
SPEAKER_VECTOR = "reference_sv.pt"  # of a v2Pro or v2ProPlus run


@on_lasting_thread
def load(name_or_path: str | Path, *, content_encoder: str | Path | None = None) -> Voice:
    """Loads a voice.

    Args:
        name_or_path: the name of a base under `weights/` ("demo"), a run's folder (its fine-tuned
            voice), a `.pth` of GPT-SoVITS, a `.safetensors` with metadata, or a folder of
            `config.json` and `weights.safetensors`.
        content_encoder: a folder in Hugging Face's form; by default the base's own, or the one
            that the run was prepared with. Only `Voice.convert` needs it.

    Returns:
        The voice.

    Raises:
        CheckpointError: there is no such voice, or its files are damaged or of an unknown kind.

    Example:
        >>> import mlx_vits
        >>> voice = mlx_vits.load("demo")
        >>> voice.version, voice.sample_rate
        ('v2', 32000)
    """
    path = given_path(name_or_path, CheckpointError)
    encoder = None
    if content_encoder is not None:
        encoder = given_path(content_encoder, CheckpointError)
    if is_run(path):
        return _load_run(path, encoder)
    is_name = len(path.parts) == 1 and not path.suffix
    if is_name and (weights_home() / path).is_dir():
        return _load_base(str(name_or_path), encoder)
    if path.is_dir() and (path / GENERATOR_FILE).is_file():
        return _load_base(str(path), encoder)
    if not path.exists():
        if str(path) in VERSIONS:
            find_base(str(path))  # says how to download it
        raise CheckpointError(
            f"{name_or_path}: there is no such voice; give a name under {weights_home()}, a run's "
            "folder or a file"
        )
    return _load_file(path, path.stem, encoder)


def _load_file(path: Path, name: str, encoder: Path | None, reference: Path | None = None) -> Voice:
    file = read_voice(path)
    return Voice(
        load_generator(file, consume=True),
        info=file.info,
        name=name,
        content_encoder=load_content_encoder(encoder) if encoder is not None else None,
        reference=reference,
    )


def _load_base(name: str, encoder: Path | None) -> Voice:
    base = find_base(name)
    return _load_file(base.generator, Path(name).name, encoder or base.content_encoder)


def _load_run(folder: Path, encoder: Path | None) -> Voice:
    info = RunInfo.read(folder)
    voice = folder / f"{info.voice}.safetensors"
    if not voice.is_file():
        raise CheckpointError(
            f"{folder}: the run has not written its voice yet; finish it with --resume {folder}"
        )
    kept = Path(info.content_encoder) if info.content_encoder else None
    if encoder is None and kept is not None and kept.is_dir():
        encoder = kept
    reference = folder / REFERENCE
    loaded = _load_file(voice, info.voice, encoder, reference if reference.is_file() else None)
    vector = folder / SPEAKER_VECTOR
    if vector.is_file():
        loaded.speaker_vector = read_speaker_vector(vector, loaded.config.reduced_dims.sv_dim)[None]
    return loaded
