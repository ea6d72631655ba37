"""Files of PyTorch to files of MLX and back, tensors unchanged bit for bit.

Both sides hold upstream's names and PyTorch's axes; only the container differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_vits.checkpoints.base import load_generator
from mlx_vits.checkpoints.state_dict import expected_shapes
from mlx_vits.checkpoints.tensors import read_tensors, write_tensors
from mlx_vits.checkpoints.torch_archive import read_torch_archive, write_torch_archive
from mlx_vits.checkpoints.voice_file import VoiceFile, read_voice, write_voice
from mlx_vits.errors import CheckpointError

_DISCRIMINATOR = "discriminators."


def torch_to_mlx(source: Path, output: Path) -> str:
    """Converts a generator (`s2G*.pth`, an exported voice) or a discriminator (`s2D*.pth`).

    Args:
        source: the `.pth`.
        output: `.safetensors`, or for a generator a folder; nothing may be there yet.

    Returns:
        What was converted, in words.

    Raises:
        CheckpointError: the file is neither, damaged or refused; nothing is written.
    """
    _check_new(output)
    content = read_torch_archive(source)
    tensors = content.get("weight") if isinstance(content, dict) else None
    if isinstance(tensors, dict) and _is_discriminator(tensors):
        if output.suffix != ".safetensors":
            raise CheckpointError(f"{output}: a discriminator needs a name in .safetensors")
        write_tensors(output, _arrays(tensors), {"format": "pt"})
        return f"discriminator, {len(tensors)} tensors"
    file = read_voice(source)
    write_voice(output, _checked(file), file.config, info=file.info, name=source.stem)
    return f"{file.config.version} generator, {len(file.tensors)} tensors"


def mlx_to_torch(source: Path, output: Path) -> str:
    """Converts a voice to the `.pth` that GPT-SoVITS opens, or a discriminator to `s2D`'s form.

    Args:
        source: `.safetensors`, or a folder (a base gives its generator).
        output: the `.pth`: fp16, and without the posterior encoder, as upstream's inference wants;
            nothing may be there yet.

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
        if _is_discriminator(tensors):
            halves = {name: np.array(a.astype(mx.float16)) for name, a in tensors.items()}
            write_torch_archive(output, {"weight": halves})
            return f"discriminator, {len(tensors)} tensors"
    file = read_voice(source)
    write_voice(output, _checked(file), file.config, info=file.info, name=source.stem)
    return f"{file.config.version} voice"


def _check_new(output: Path) -> None:
    if output.exists():
        raise CheckpointError(f"{output}: is there already; take it away or choose another name")


def _is_discriminator(tensors: Mapping[str, Any]) -> bool:
    return bool(tensors) and all(name.startswith(_DISCRIMINATOR) for name in tensors)


def _checked(file: VoiceFile) -> dict[str, mx.array]:
    """The tensors in upstream's order, if they fit the configuration."""
    names = expected_shapes(load_generator(file))
    return _arrays({name: file.tensors[name] for name in names if name in file.tensors})


def _arrays(tensors: Mapping[str, Any]) -> dict[str, mx.array]:
    return {name: mx.array(tensor) for name, tensor in tensors.items()}
