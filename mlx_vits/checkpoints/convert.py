"""Convert between PyTorch and MLX files; tensors stay bit-identical.

Both use upstream's names and PyTorch's axes; only the container differs. Of a resume file only the
weights are converted; `upstream_run.py` handles whole runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_vits.checkpoints.base import load_discriminator_tensors, load_generator
from mlx_vits.checkpoints.contents import discriminator_family, is_discriminator
from mlx_vits.checkpoints.gpt_file import copy_gpt, is_gpt
from mlx_vits.checkpoints.state_dict import expected_shapes
from mlx_vits.checkpoints.tensors import read_tensors, to_numpy, write_tensors
from mlx_vits.checkpoints.torch_archive import write_torch_archive
from mlx_vits.checkpoints.upstream import read_upstream
from mlx_vits.checkpoints.voice_file import VoiceFile, read_voice, voice_of, write_voice
from mlx_vits.errors import CheckpointError


def torch_to_mlx(source: Path, output: Path) -> str:
    """Convert any `.pth` or `.ckpt` of GPT-SoVITS, of any version.

    Args:
        source: pretrained generator or discriminator, resume file of either, exported voice, or a
            GPT, also the state of its training.
        output: `.safetensors`, or a folder for a generator or a GPT; must not exist.

    Returns:
        A description of what was converted.

    Raises:
        CheckpointError: the file is none of these, damaged or refused; nothing is written.
    """
    _check_new(output)
    if is_gpt(source):
        return copy_gpt(source, output)
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
    """Convert a voice or a GPT for GPT-SoVITS, or a discriminator to the form of `s2D`.

    Args:
        source: `.safetensors`, or a folder (of a base, its generator).
        output: a `.pth`, or a `.ckpt` for a GPT; must not exist. A voice is written in fp16 without
            its posterior encoder, as upstream's inference expects, a GPT in fp16; a discriminator
            keeps its precision.
        whole: whether a generator keeps its precision and posterior encoder, as upstream's training
            expects (the form of `s2G`).

    Returns:
        A description of what was converted.

    Raises:
        CheckpointError: the file is neither of the two, or damaged; nothing is written.
    """
    _check_new(output)
    if is_gpt(source):
        return copy_gpt(source, output)
    if output.suffix != ".pth":
        raise CheckpointError(f"{output}: has to end in .pth, or for a GPT in .ckpt")
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
    """Return the tensors in upstream's order, checked against the configuration."""
    names = expected_shapes(load_generator(file))
    return _arrays({name: file.tensors[name] for name in names if name in file.tensors})


def _checked_discriminator(tensors: Mapping[str, Any], source: Path) -> dict[str, mx.array]:
    names = expected_shapes(load_discriminator_tensors(tensors, source))
    return _arrays({name: tensors[name] for name in names})


def _arrays(tensors: Mapping[str, Any]) -> dict[str, mx.array]:
    return {name: mx.array(tensor) for name, tensor in tensors.items()}
