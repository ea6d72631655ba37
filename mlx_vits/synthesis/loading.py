"""`mlx_vits.load`: from a name or a path to a voice."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from mlx_vits.checkpoints.base import (
    content_encoder_file,
    find_base,
    load_generator,
    read_content_encoder_config,
    weights_home,
)
from mlx_vits.checkpoints.gpt_file import find_gpt
from mlx_vits.checkpoints.run_info import RunInfo, find_run, is_run
from mlx_vits.checkpoints.voice_file import GENERATOR_FILE, read_voice
from mlx_vits.config import VERSIONS
from mlx_vits.errors import CheckpointError, UserError
from mlx_vits.nn.threads import on_lasting_thread
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.preprocessing.choosing import choose_reference, read_candidates
from mlx_vits.preprocessing.prepared import read_speaker_vector
from mlx_vits.synthesis.companions import (
    Companions,
    StoredReference,
    check_content_encoder,
    read_stored_reference,
)
from mlx_vits.synthesis.gpt import BITS, find_gpt_path
from mlx_vits.synthesis.voice import Voice
from mlx_vits.system.files import given_path

REFERENCE = "reference.wav"  # the style of `Voice.convert`, and of a run's scores
PROMPT = "prompt.wav"  # what a run's speech continues, where that is another clip
SPEAKER_VECTOR = "reference_sv.pt"  # of a v2Pro or v2ProPlus run


@on_lasting_thread
def load(
    name_or_path: str | Path,
    *,
    content_encoder: str | Path | None = None,
    gpt: str | Path | None = None,
    bits: int | None = None,
) -> Voice:
    """Load a voice.

    Args:
        name_or_path: the name of a base under `weights/` ("demo"), a run's folder or its name under
            `runs/` (its fine-tuned voice), a `.pth` of GPT-SoVITS, a `.safetensors` with metadata,
            or a folder of `config.json` and `weights.safetensors`.
        content_encoder: a folder in Hugging Face's form; by default the one that the run was
            prepared with, or that of the base, for a `.pth` of a downloaded base of its version.
            It is read by the first `Voice.convert` or `Voice.speak`.
        gpt: a T2S model, in any form that `load_gpt` takes; by default the run's own, or that of
            the base that the run names, or for a `.pth` that of a downloaded base of its version.
            It is read by the first `Voice.speak`.
        bits: hold the weights of the T2S model in 8 or 4 bits, see `GPT.quantize`.

    Returns:
        The voice.

    Raises:
        CheckpointError: there is no such voice, or its files are damaged or of an unknown kind.
        UserError: `bits` is something else.

    Example:
        >>> import mlx_vits
        >>> voice = mlx_vits.load("demo")
        >>> voice.version, voice.sample_rate
        ('v2', 32000)
    """
    path = given_path(name_or_path, CheckpointError)
    if bits not in (None, *BITS):
        raise UserError(f"bits is {bits!r}; it has to be 8 or 4")
    given = Companions(
        gpt_bits=bits,
        gpt=find_gpt_path(gpt) if gpt is not None else None,
        content_encoder=(
            given_path(content_encoder, CheckpointError) if content_encoder is not None else None
        ),
    )
    if is_run(path):
        return _load_run(path, given)
    is_name = len(path.parts) == 1 and not path.suffix
    if is_name and (weights_home() / path).is_dir():
        return _load_base(str(name_or_path), given)
    if path.is_dir() and (path / GENERATOR_FILE).is_file():
        return _load_base(str(path), given)
    if is_run(find_run(path)):
        return _load_run(find_run(path), given)
    if not path.exists():
        if str(path) in VERSIONS:
            find_base(str(path))  # says how to download it
        raise CheckpointError(
            f"{name_or_path}: there is no such voice; give a name under {weights_home()} or "
            "runs/, a run's folder or a file"
        )
    return _load_file(path, path.stem, given, of_base)


def _load_file(
    path: Path,
    name: str,
    given: Companions,
    find: Callable[[str], Companions],
    reference: Path | None = None,
) -> Voice:
    """Load a voice; `find` is told its version, and looks for the rest when that is needed."""
    file = read_voice(path)
    version = file.config.version
    if given.content_encoder is not None:
        content_encoder_file(given.content_encoder)  # is there
        config = read_content_encoder_config(given.content_encoder)
        check_content_encoder(config, file.config.reduced_dims.ssl_dim, name)
    return Voice(
        load_generator(file, consume=True),
        info=file.info,
        name=name,
        reference=reference,
        companions=lambda: given.completed_by(find(version)),
    )


def of_base(name: str) -> Companions:
    """Return what a base has for its voices to speak with; nothing where there is no such base."""
    try:
        base = find_base(name)
    except CheckpointError:
        return Companions()
    return Companions(base.gpt, base.content_encoder, base.speaker_encoder)


def _load_base(name: str, given: Companions) -> Voice:
    base = find_base(name)

    def find(version: str) -> Companions:
        own = Companions(find_reference=partial(read_stored_reference, base.generator))
        return own.completed_by(of_base(name))

    return _load_file(base.generator, Path(name).name, given, find)


def companions_of_run(folder: Path, info: RunInfo, version: str) -> Companions:
    """Return what a run's voice has to speak with: the run's own, else its base's."""
    kept = Path(info.content_encoder) if info.content_encoder else None
    found = Companions(
        gpt=find_gpt(folder),
        content_encoder=kept if kept is not None and kept.is_dir() else None,
        find_reference=partial(_reference_of, folder, info),
    )
    for base in (info.base, info.generator, version):
        if base:
            found = found.completed_by(of_base(base))
    return found


def _reference_of(folder: Path, info: RunInfo) -> StoredReference | None:
    """Return what a run speaks from; one of an earlier version has not chosen it yet."""
    stored = read_stored_reference(folder)
    if stored is not None:
        return stored
    prepared = folder / info.prepared
    if layout.is_prepared(prepared):
        choice = choose_reference(read_candidates(prepared, info.language))
        if choice is not None:
            chosen = choice.candidate
            recording = prepared / layout.WAV_FOLDER / chosen.name
            return StoredReference(str(recording), chosen.text, chosen.language)
    recording = folder / REFERENCE
    return StoredReference(str(recording), "", info.language) if recording.is_file() else None


def _load_run(folder: Path, given: Companions) -> Voice:
    info = RunInfo.read(folder)
    voice = folder / f"{info.voice}.safetensors"
    if not voice.is_file():
        raise CheckpointError(
            f"{folder}: the run has not written its voice yet; finish it with --resume {folder}"
        )
    reference = folder / REFERENCE
    loaded = _load_file(
        voice,
        info.voice,
        given,
        partial(companions_of_run, folder, info),
        reference if reference.is_file() else None,
    )
    vector = folder / SPEAKER_VECTOR
    if vector.is_file():
        loaded.speaker_vector = read_speaker_vector(vector, loaded.config.reduced_dims.sv_dim)[None]
    return loaded
