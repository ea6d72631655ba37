"""Load the speaker encoder from upstream's `sv/pretrained_eres2netv2w24s4ep4.ckpt`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_vits.checkpoints.state_dict import load_state
from mlx_vits.checkpoints.tensors import read_tensors
from mlx_vits.checkpoints.torch_archive import read_torch_archive
from mlx_vits.errors import CheckpointError
from mlx_vits.models.speaker_encoder import ERes2NetV2, SpeakerEncoderConfig

FILE_NAME = "pretrained_eres2netv2w24s4ep4.ckpt"
_EMBEDDING = "seg_1."  # the embedding layer after the vector that is used
_STEP_COUNTER = ".num_batches_tracked"  # batch norm's training counter
_STAGES = 4


def load_speaker_encoder(path: Path) -> ERes2NetV2:
    """Build a speaker encoder with a file's weights and sizes.

    Tensors that are not needed for the vector are skipped by name: the embedding layer (`seg_1`)
    and the step counters of batch norms.

    Args:
        path: upstream's `.ckpt`, or the same tensors as safetensors.

    Raises:
        CheckpointError: the file is missing, damaged, or another model's.
    """
    if path.suffix == ".safetensors":
        tensors: Any = read_tensors(path).tensors
    else:
        tensors = read_torch_archive(path)
    if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
        raise _not_an_encoder(path)
    try:
        model = ERes2NetV2(_infer_config(tensors))
    except (KeyError, IndexError, ValueError, ZeroDivisionError, AttributeError) as error:
        raise _not_an_encoder(path) from error
    used = {name: tensor for name, tensor in tensors.items() if not _is_unused(name)}
    tensors.clear()
    load_state(model, used, source=str(path), consume=True)
    return model


def _not_an_encoder(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path}: is not the speaker encoder of v2Pro and v2ProPlus; give GPT-SoVITS's "
        f"sv/{FILE_NAME}"
    )


def _is_unused(name: str) -> bool:
    return name.startswith(_EMBEDDING) or name.endswith(_STEP_COUNTER)


def _infer_config(tensors: Mapping[str, Any]) -> SpeakerEncoderConfig:
    """Infer the sizes from the tensors' shapes.

    Raises:
        KeyError, IndexError, ValueError, ZeroDivisionError, AttributeError: a tensor is missing,
            misshapen, or not a tensor.
    """
    channels = tensors["conv1.weight"].shape[0]
    widest = tensors["layer4.0.convs.0.weight"].shape[0]
    return SpeakerEncoderConfig(
        m_channels=channels,
        baseWidth=math.ceil(widest * 64 / (8 * channels)),
        scale=_count(tensors, r"layer1\.0\.convs\.(\d+)\."),
        expansion=tensors["layer1.0.conv3.weight"].shape[0] // channels,
        num_blocks=tuple(_count(tensors, rf"layer{i + 1}\.(\d+)\.") for i in range(_STAGES)),
    )


def _count(tensors: Mapping[str, Any], pattern: str) -> int:
    return len({match.group(1) for name in tensors if (match := re.match(pattern, name))})
