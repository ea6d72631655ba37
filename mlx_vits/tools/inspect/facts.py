"""Everything `mlx-vits inspect` says, as plain values.

The JSON output has the attributes of these classes and of `Subject` for keys, which stay as they
are; new ones may come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlx_vits.tools.inspect.expected import MissingFacts
from mlx_vits.tools.inspect.layers import RowFacts
from mlx_vits.tools.inspect.optimizers import OptimizerFacts
from mlx_vits.tools.inspect.upstream_guess import UpstreamView
from mlx_vits.tools.pages import Remark

# What the parts of a generator do, in the order of upstream's files.
MODULES = {
    "enc_p": "prior encoder: phonemes and content",
    "dec": "decoder to audio (HiFi-GAN)",
    "enc_q": "posterior encoder; only for training",
    "flow": "flow between enc_p and enc_q",
    "ref_enc": "style of a reference recording",
    "ssl_proj": "content at half its rate; never trained",
    "quantizer": "codebook of content; never trained",
    "sv_emb": "style from the speaker vector",
    "ge_to512": "style for enc_p",
    "prelu": "activation of the style",
    # Of a GPT.
    "bert_proj": "BERT features to its width; Chinese only",
    "ar_text_embedding": "phonemes",
    "ar_text_position": "scale of their places",
    "ar_audio_embedding": "codes",
    "ar_audio_position": "scale of their places",
    "h": "transformer",
    "ar_predict_layer": "the next code",
}


@dataclass(frozen=True)
class VersionFacts:
    """Which version a net is of."""

    version: str  # by content; for a discriminator the versions it serves, "" for other nets
    told_by: list[str]  # what in its content tells that
    claims: dict[str, str]  # what else states a version, and which
    gpt_sovits: UpstreamView | None  # None for a file GPT-SoVITS would not speak with


@dataclass(frozen=True)
class ModuleFacts:
    """One part of a net."""

    name: str  # upstream's
    tensors: int
    parameters: int  # numbers in them, buffers included
    precisions: dict[str, int]  # tensors by precision
    moved: float | None  # ‖t - t'‖ / ‖t'‖ of the tensors as stored, t' being the other file's


@dataclass(frozen=True)
class NetFacts:
    """One net; attributes that `Net` has too are described there."""

    net: str
    kind: str
    form: str
    file: str
    container: str
    size_bytes: int  # of the file
    version: VersionFacts
    tensors: int
    parameters: int  # buffers included
    precisions: dict[str, int]  # tensors by precision
    reduced: bool | None  # whether a size differs from what GPT-SoVITS hard-codes; None: unknown
    reduced_dims: dict[str, list[Any]]  # those sizes: found, and at full size
    sizes: dict[str, int]  # of a GPT, whose sizes its file states
    config_source: str
    config_fault: str  # why the configuration cannot be used as it is, "" where it can
    trained: dict[str, Any]  # how far and from what, as far as the file says
    optimizer: OptimizerFacts | None
    modules: list[ModuleFacts]
    missing: MissingFacts
    weight_norm: dict[str, Any]  # layers by form, see layers.py; "live" and "plain" only counted
    layers: list[RowFacts]  # a decoder in the signal's order, a discriminator by its parts
    stand_out: dict[str, float]  # layers whose norm changed, by ratio, most changed first
    remarks: list[Remark]  # in sentences
