"""Stage `assemble`: the folder of the base, in fp16, from what was trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from mlx_vits.checkpoints.base import load_content_encoder
from mlx_vits.checkpoints.state_dict import state_of
from mlx_vits.checkpoints.tensors import write_tensors
from mlx_vits.errors import UserError
from mlx_vits.system.files import atomic_write, fresh_folder, make_folder, replace_folder
from mlx_vits.models.vits import MultiPeriodDiscriminator, SynthesizerTrn
from scripts.demo_base.running import read_state
from scripts.demo_base.settings import Settings
from scripts.demo_base.store import read_arrays, say
from scripts.demo_base.train import STATE, build_step, set_state

_SMALLEST_CLUSTER, _LARGEST_CLUSTER = 2, 60000  # fp16 holds no more


def assemble_stage(work: Path, settings: Settings) -> Path:
    """Runs the stage.

    Returns:
        The base's folder.

    Raises:
        UserError: nothing is trained yet, or a weight is no number in fp16.
    """
    path = work / STATE
    if not path.is_file():
        raise UserError(f"{path}: is not there yet; run the stage `train` first")
    state = read_state(path)
    step = build_step(settings)
    set_state(step, state, settings)
    config = settings.model
    generator, discriminator = SynthesizerTrn(config), MultiPeriodDiscriminator(config)
    learnt = step.generator.flat.unpack(step.nets["g"].mean)
    fixed = quantizer_tensors(read_arrays(work / "codebook.npz", "codebook"))
    generator.update(tree_unflatten([*learnt.items(), *fixed.items()]), strict=True)
    judge = step.discriminator.flat.unpack(step.nets["d"].weights)
    discriminator.update(tree_unflatten(list(judge.items())), strict=True)
    encoder = load_content_encoder(work / "encoder")
    base = work / "base"
    with fresh_folder(base) as new:
        make_folder(new / "content_encoder")
        # The name that upstream's files carry: a fine-tune counts its own steps from 0.
        info = {"info": f"1epoch_{state.step}iteration", "format": "pt"}
        for model, name in (
            (generator, "generator"),
            (discriminator, "discriminator"),
            (encoder, "content_encoder/weights"),
        ):
            write_tensors(new / f"{name}.safetensors", in_half(model, name), info)
        shutil.copyfile(work / "encoder" / "config.json", new / "content_encoder" / "config.json")
        with atomic_write(new / "config.json") as file:
            file.write(json.dumps(config.to_dict(), indent=1).encode())
        replace_folder(new, base)
    size = sum(file.stat().st_size for file in base.rglob("*") if file.is_file())
    say(f"{base}: {state.step} steps, {size / 1e6:.1f} MB")
    return base


def quantizer_tensors(fitted: dict[str, np.ndarray]) -> dict[str, mx.array]:
    """`ssl_proj` and the quantizer, by path in the generator, from `codebook.npz`."""
    width = fitted["bias"].shape[0]
    weight = fitted["weight"].reshape(2, width, width).transpose(2, 0, 1)  # (out, frame, in)
    entries, counts = fitted["entries"], fitted["counts"]
    book = "quantizer.vq.layers.0.codebook"
    tensors: dict[str, Any] = {
        "ssl_proj.weight": np.ascontiguousarray(weight),
        "ssl_proj.bias": fitted["bias"],
        f"{book}.embed": entries,
        f"{book}.embed_avg": entries,
        f"{book}.cluster_size": np.clip(counts, _SMALLEST_CLUSTER, _LARGEST_CLUSTER),
        f"{book}.inited": np.ones(1),
    }
    return {name: mx.array(tensor.astype(np.float32)) for name, tensor in tensors.items()}


def in_half(model: Any, name: str) -> dict[str, mx.array]:
    """A model's tensors in fp16.

    Raises:
        UserError: one of them holds something that is no number.
    """
    tensors = {key: array.astype(mx.float16) for key, array in state_of(model).items()}
    for key, array in tensors.items():
        if not mx.all(mx.isfinite(array)).item():
            raise UserError(f"{name}: {key} is not a number in fp16; train again")
    return tensors
