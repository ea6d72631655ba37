"""Infer from a file's tensors which model they belong to.

Versions are detected by content, never by file size or name (GPT-SoVITS tells v1 from v2 by 73
KiB). Sizes that a file does not state are inferred from shapes.

Source: GPT-SoVITS `module/models.py`; the names are those of its state dicts.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlx_vits.checkpoints.torch_names import MAX_NAME_CHARS
from mlx_vits.config import VERSIONS, Config, ReducedDims
from mlx_vits.errors import CheckpointError
from mlx_vits.models.discriminator import PERIODS, PRO_PERIODS

TEXT_TABLE = "enc_p.text_embedding.weight"
_DISCRIMINATOR = "discriminators."
_DIFFUSION = "cfm."  # v3 and v4 only, in place of flow and decoder
V1_SYMBOLS = 322
PLUS_KERNEL = 20  # of v2ProPlus's first upsampling layer; v2Pro's is 16
FIRST_UPSAMPLING = ("dec.ups.0.weight_v", "dec.ups.0.weight")
_TAKEN = f"give a voice of {', '.join(VERSIONS[:-1])} or {VERSIONS[-1]}"
# Models that users confuse with a voice: a pattern of their tensor names, and the message.
_OTHERS = (
    (r".*\.lora_[AB]\b", f"is a LoRA of v3 or v4, which mlx_vits does not know; {_TAKEN}"),
    (_DIFFUSION, f"is a v3 or v4 model, which mlx_vits does not know; {_TAKEN}"),
    (
        r"(model\.)?(ar_text_embedding|h\.layers)\.",
        "is a model of GPT-SoVITS's GPT stage, which chooses what is said, not a voice; give the "
        ".pth from SoVITS_weights",
    ),
    (r"enc_p\.emb_(phone|pitch)\.", f"is a voice of RVC, not of GPT-SoVITS; {_TAKEN}"),
    (r"(f0_decoder|f0_prenet|emb_uv)\.", f"is a model of so-vits-svc, not of GPT-SoVITS; {_TAKEN}"),
    (r"model_[gd]\.", f"is a model of Piper, not of GPT-SoVITS; {_TAKEN}"),
    (r"enc_p\.emb\.", f"is a VITS model without content units, not of GPT-SoVITS; {_TAKEN}"),
    (r"discriminators\.", "is a discriminator, not a voice; give a generator (s2G or G_)"),
    (
        r"(hubert\.)?feature_(extractor|projection)\.",
        "is a content encoder, not a voice; give its folder as --content-encoder",
    ),
    (r"(layer1\.0\.convs|seg_1)\.", "is a speaker encoder; give it as --speaker-encoder"),
    (r"(bert\.)?embeddings\.", f"is a BERT model, which reads text, not a voice; {_TAKEN}"),
)
# Sub-discriminators: one over samples, and one a period.
BRANCHES, PRO_BRANCHES = 1 + len(PERIODS), 1 + len(PRO_PERIODS)
_WIDTH_LAYER = "discriminators.0.conv_post"  # its inputs show the width
_FULL_WIDTH = 1024


def is_generator(names: Iterable[str]) -> bool:
    """Whether tensor names are those of a SoVITS generator."""
    return TEXT_TABLE in names


def is_discriminator(names: Iterable[str]) -> bool:
    """Whether tensor names are those of a discriminator only."""
    found = list(names)
    return bool(found) and all(name.startswith(_DISCRIMINATOR) for name in found)


def has_posterior(names: Iterable[str]) -> bool:
    """Whether the posterior encoder is present, which training needs and exports lack."""
    return any(name.startswith("enc_q.") for name in names)


def check_tensors(tensors: Mapping[Any, Any], source: str | Path) -> None:
    """Check that a table maps names to tensors only.

    Raises:
        CheckpointError: an entry is something else.
    """
    for name, value in tensors.items():
        if not isinstance(name, str) or not hasattr(value, "shape"):
            raise CheckpointError(
                f"{source}: is damaged, its weights hold {name!r}, which is no tensor; copy or "
                "download it again"
            )
        if len(name) > MAX_NAME_CHARS:
            raise CheckpointError(
                f"{source}: is damaged, the name of a tensor has {len(name)} characters; copy or "
                "download it again"
            )


def refuse_others(names: Iterable[Any], source: str | Path) -> None:
    """Refuse models that users confuse with a voice.

    Raises:
        CheckpointError: it is one of them; the message names it and what to give instead.
    """
    found = [name for name in names if isinstance(name, str)]
    for pattern, words in _OTHERS:
        if any(re.match(pattern, name) for name in found):
            raise CheckpointError(f"{source}: {words}")


def detect_version(tensors: Mapping[str, Any], source: str | Path = "the file") -> str:
    """Detect the version of a generator, one of `VERSIONS`.

    The rows of the phoneme embedding tell v1 (322) from v2; the speaker vector's layer marks the
    Pro models, and the kernel of the first upsampling layer tells v2ProPlus from v2Pro.

    Raises:
        CheckpointError: it is a v3 or v4 model, or not a generator.
    """
    table = tensors.get(TEXT_TABLE)
    if table is None or any(name.startswith(_DIFFUSION) for name in tensors):
        refuse_others(tensors, source)
    if table is None or len(table.shape) != 2:
        raise CheckpointError(f"{source}: is not a SoVITS generator (no enc_p.text_embedding)")
    if "sv_emb.weight" in tensors:
        first = next((tensors[n] for n in FIRST_UPSAMPLING if n in tensors), None)
        is_plus = first is not None and tuple(first.shape[-1:]) == (PLUS_KERNEL,)
        return "v2ProPlus" if is_plus else "v2Pro"
    return "v1" if table.shape[0] == V1_SYMBOLS else "v2"


def discriminator_family(names: Iterable[str]) -> str:
    """Return the versions a discriminator fits: "v1 and v2" or "v2Pro and v2ProPlus"."""
    branches = {name.split(".")[1] for name in names}
    return "v2Pro and v2ProPlus" if len(branches) >= PRO_BRANCHES else "v1 and v2"


def discriminator_config(tensors: Mapping[str, Any], source: str | Path) -> Config:
    """The configuration of a discriminator, of the version and width that its tensors have.

    Args:
        tensors: PyTorch's axes.
        source: the file, for messages.

    Raises:
        CheckpointError: the tensor that shows the width is missing or misshapen.
    """
    names = (f"{_WIDTH_LAYER}.weight_v", f"{_WIDTH_LAYER}.weight")
    shape = next((_shape(tensors, name) for name in names if name in tensors), ())
    if len(shape) != 3:
        raise CheckpointError(
            f"{source}: lacks {names[0]}, or has it misshapen; copy or download it again"
        )
    version = discriminator_family(tensors).split(" and ")[-1]
    dims = {"disc_width": shape[1] / _FULL_WIDTH}
    return Config.from_dict({"version": version, "reduced_dims": dims}, source=str(source))


def complete_config(
    values: Mapping[str, Any], tensors: Mapping[str, Any], source: str | Path
) -> Config:
    """Complete a generator's stated configuration by what its tensors show.

    Args:
        values: upstream's nested dictionary, empty if the file has none (a resume file).
        tensors: in PyTorch's axes.
        source: the file, for messages.

    Raises:
        CheckpointError: the two contradict each other or are incomplete.
    """
    version = detect_version(tensors, source)
    model = {} if values.get("model") is None else values["model"]
    if not isinstance(model, Mapping):
        raise CheckpointError(f"{source}: `model` of the configuration is not a table")
    try:
        inferred = infer_model(tensors)
        whole = dict(values) | {"model": inferred | dict(model) | {"version": version}}
        if "reduced_dims" not in values:
            whole["reduced_dims"] = dataclasses.asdict(infer_dims(tensors, version))
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{source}: lacks {error}, or has it misshapen; copy or download it again"
        ) from error
    return Config.from_dict(whole, source=str(source))


def infer_dims(tensors: Mapping[str, Any], version: str) -> ReducedDims:
    """Infer the sizes that upstream hard-codes from a file's tensors.

    Raises:
        KeyError, IndexError: a tensor is missing, or has too few axes.
    """
    found = {
        "ssl_dim": _shape(tensors, "ssl_proj.weight")[0],
        "mrte_hidden": _shape(tensors, "enc_p.mrte.c_pre.weight")[0],
        "codebook_size": _shape(tensors, "quantizer.vq.layers.0._codebook.embed")[0],
        "style_hidden": _shape(tensors, "ref_enc.spectral.0.fc.weight")[0],
        "ref_spec_bins": _shape(tensors, "ref_enc.spectral.0.fc.weight")[1],
        "style_kernel": _shape(tensors, "ref_enc.temporal.0.conv1.conv.weight")[2],
        "text_vocab": _shape(tensors, TEXT_TABLE)[0],
        "attn_window": _shape(tensors, "enc_p.encoder_ssl.attn_layers.0.emb_rel_k")[1] // 2,
        "flow_n_flows": _count(tensors, r"flow\.flows\.(\d+)\.pre\.weight"),
        "flow_wn_layers": _count(tensors, r"flow\.flows\.0\.enc\.in_layers\.(\d+)\."),
        "flow_kernel": _kernel(tensors, "flow.flows.0.enc.in_layers.0"),
        "sv_dim": _shape(tensors, "sv_emb.weight")[1] if "sv_emb.weight" in tensors else 0,
    }
    if has_posterior(tensors):
        found["enc_q_wn_layers"] = _count(tensors, r"enc_q\.enc\.in_layers\.(\d+)\.")
        found["enc_q_kernel"] = _kernel(tensors, "enc_q.enc.in_layers.0")
    return dataclasses.replace(ReducedDims.full_size(version), **found)


def infer_model(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Infer keys of `model` from shapes; rates and dilations cannot be inferred.

    Raises:
        KeyError, IndexError, ZeroDivisionError: a tensor is missing, or misshapen.
    """
    ffn = _shape(tensors, "enc_p.encoder_text.ffn_layers.0.conv_1.weight")
    hidden = _shape(tensors, TEXT_TABLE)[1]
    head = _shape(tensors, "enc_p.encoder_text.attn_layers.0.emb_rel_k")[2]
    ups = _count(tensors, r"dec\.ups\.(\d+)\.")
    blocks = _count(tensors, r"dec\.resblocks\.(\d+)\.") // ups
    return {
        "inter_channels": 2 * _shape(tensors, "flow.flows.0.pre.weight")[1],
        "hidden_channels": hidden,
        "filter_channels": ffn[0],
        "kernel_size": ffn[2],
        "n_heads": hidden // head,
        "n_layers": _count(tensors, r"enc_p\.encoder_text\.attn_layers\.(\d+)\."),
        "gin_channels": _shape(tensors, "dec.cond.weight")[1],
        "upsample_initial_channel": _shape(tensors, "dec.conv_pre.weight")[0],
        "upsample_kernel_sizes": [_kernel(tensors, f"dec.ups.{i}") for i in range(ups)],
        "resblock_kernel_sizes": [
            _kernel(tensors, f"dec.resblocks.{i}.convs1.0") for i in range(blocks)
        ],
        "semantic_frame_rate": "25hz" if _shape(tensors, "ssl_proj.weight")[2] == 2 else "50hz",
    }


def _shape(tensors: Mapping[str, Any], name: str) -> tuple[int, ...]:
    return tuple(tensors[name].shape)


def _kernel(tensors: Mapping[str, Any], layer: str) -> int:
    """Return the kernel size of a layer, with or without weight norm."""
    name = f"{layer}.weight_v"
    return _shape(tensors, name if name in tensors else f"{layer}.weight")[2]


def _count(tensors: Mapping[str, Any], pattern: str) -> int:
    return len({match.group(1) for name in tensors if (match := re.match(pattern, name))})
