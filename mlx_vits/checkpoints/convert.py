"""Files of PyTorch to files of MLX and back, tensors unchanged bit for bit.

Both sides hold upstream's names and PyTorch's axes; only the container differs. What a resume file
holds besides weights stays behind: `upstream_run.py` moves whole runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_vits.checkpoints.base import load_discriminator_tensors, load_generator
from mlx_vits.checkpoints.contents import discriminator_family, is_discriminator
from mlx_vits.checkpoints.state_dict import expected_shapes
from mlx_vits.checkpoints.tensors import read_tensors, to_numpy, write_tensors
from mlx_vits.checkpoints.torch_archive import write_torch_archive
from mlx_vits.checkpoints.upstream import read_upstream
from mlx_vits.checkpoints.voice_file import VoiceFile, read_voice, voice_of, write_voice
from mlx_vits.errors import CheckpointError


def torch_to_mlx(source: Path, output: Path) -> str:
    """Converts any `.pth` of GPT-SoVITS's SoVITS stage, of every version.

    Args:
        source: a pretrained generator or discriminator, a resume file of either, an exported voice.
        output: `.safetensors`, or for a generator a folder; nothing may be there yet.

    Returns:
        What was converted, in words.

    Raises:
        CheckpointError: the file is none of them, damaged or refused; nothing is written.
    """
    _check_new(output)
    content = read_upstream(source)
    left = ", without the optimizer's state" if content.form == "resume" else ""
    if content.net == "discriminator":
        if output.suffix != ".safetensors":
            raise CheckpointError(f"{output}: a discriminator needs a name in .safetensors")
        arrays = _checked_discriminator(content.tensors, source)
        family = discriminator_family(arrays)
        write_tensors(output, arrays, {"format": "pt", "versions": family})
        return f"discriminator of {family}, {len(arrays)} tensors{left}"
    file = voice_of(content)
    write_voice(output, _checked(file), file.config, info=file.info, name=source.stem)
    what = "voice" if content.form == "exported" else "generator"
    return f"{file.config.version} {what}, {len(file.tensors)} tensors{left}"


def mlx_to_torch(source: Path, output: Path, *, whole: bool = False) -> str:
    """Converts a voice to the `.pth` that GPT-SoVITS opens, or a discriminator to `s2D`'s form.

    Args:
        source: `.safetensors`, or a folder (a base gives its generator).
        output: the `.pth`; nothing may be there yet. A voice becomes fp16 and loses its posterior
            encoder, as upstream's inference wants; a discriminator keeps its precision.
        whole: a generator keeps its precision and its posterior encoder, as upstream's training
            wants (`s2G`'s form).

    Returns:
        What was converted, in words.

    Raises:
        CheckpointError: the file is neither, or damaged; nothing is written.
    """
    _check_new(output)
    if output.suffix != ".pth":
        raise CheckpointError(f"{output}: has to end in .pth")
    if source.suffix == ".safetensors":
        tensors = read_tensors(source).tensors
        if is_discriminator(tensors):
            arrays = _checked_discriminator(tensors, source)
            weight = {name: to_numpy(array) for name, array in arrays.items()}
            write_torch_archive(output, {"weight": weight})
            return f"discriminator of {discriminator_family(arrays)}, {len(arrays)} tensors"
    file = read_voice(source)
    state = _checked(file)
    write_voice(output, state, file.config, info=file.info, name=source.stem, whole=whole)
    return f"{file.config.version} {'generator' if whole else 'voice'}"


def _check_new(output: Path) -> None:
    if output.exists():
        raise CheckpointError(f"{output}: is there already; take it away or choose another name")


def _checked(file: VoiceFile) -> dict[str, mx.array]:
    """The tensors in upstream's order, if they fit the configuration."""
    names = expected_shapes(load_generator(file))
    return _arrays({name: file.tensors[name] for name in names if name in file.tensors})


def _checked_discriminator(tensors: Mapping[str, Any], source: Path) -> dict[str, mx.array]:
    names = expected_shapes(load_discriminator_tensors(tensors, source))
    return _arrays({name: tensors[name] for name in names})


def _arrays(tensors: Mapping[str, Any]) -> dict[str, mx.array]:
    return {name: mx.array(tensor) for name, tensor in tensors.items()}
