"""Everything `mlx-vits inspect` says, as plain values; `show.py` puts it into words and tables.

`as_json.py` gives the form for machines.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from mlx_vits.errors import CheckpointError
from mlx_vits.tools.inspect.expected import Expected, expect
from mlx_vits.tools.inspect.layers import (
    Form,
    RowFacts,
    decoder_rows,
    discriminator_rows,
    forms,
    natural,
    ratio,
)
from mlx_vits.tools.inspect.missing import MissingFacts, find_missing
from mlx_vits.tools.inspect.optimizers import OptimizerFacts, optimizer_facts
from mlx_vits.tools.inspect.subject import Net, Subject
from mlx_vits.tools.inspect.upstream_guess import UpstreamView, judge_file

_TEXT_TABLE = "enc_p.text_embedding.weight"
_TRAINED_FIELDS = ("pretrained_s2G", "pretrained_s2D")  # of `train`
_TOP_FIELDS = ("name", "pretrain", "resume_step")
_CHANGED = 0.05  # of a norm, as the logarithm of its ratio
# In the order of the files; what is not listed comes after.
_MODULES = ("enc_p", "dec", "enc_q", "flow", "ref_enc", "ssl_proj", "quantizer", "sv_emb")


@dataclass(frozen=True)
class VersionFacts:
    """Which version a net is of.

    Attributes:
        version: by content; for a discriminator the versions it serves, "" for other nets.
        told_by: what in its content tells that.
        claims: what else states a version, and which.
        gpt_sovits: what GPT-SoVITS takes it for; None for a file it would not speak with.
    """

    version: str
    told_by: list[str]
    claims: dict[str, str]
    gpt_sovits: UpstreamView | None


@dataclass(frozen=True)
class ModuleFacts:
    """One part of a net.

    Attributes:
        name: upstream's.
        tensors: how many.
        parameters: numbers in them, buffers included.
        precisions: tensors by precision.
        moved: ‖t - t'‖ / ‖t'‖ over the tensors as stored, t' being the other file's.
    """

    name: str
    tensors: int
    parameters: int
    precisions: dict[str, int]
    moved: float | None


@dataclass(frozen=True)
class NetFacts:
    """One net.

    Attributes:
        net: generator, discriminator or content encoder.
        kind, file, container: as `Net` has them.
        form: pretrained, exported, resume, voice, part (of a base), state (of a run).
        size_bytes: of the file.
        version: which, and how it was told.
        tensors, parameters: how many, buffers included.
        precisions: tensors by precision.
        reduced: whether a size is not the one that GPT-SoVITS hard-codes; None where unknown.
        reduced_dims: the sizes that differ: found, and at full size.
        config_source: where the configuration is stated, "" where nowhere.
        config_fault: why it cannot be used as it is, "" where it can.
        trained: how far and from what, as far as the file says.
        optimizer: of a resume file or a run's state.
        modules: in the order of the file.
        missing: what is not there.
        weight_norm: layers by form, see layers.py; those stored as upstream does only counted.
        layers: a decoder in the signal's order, a discriminator by its parts.
        stand_out: with another file, the layers whose norm changed most: name and ratio.
    """

    net: str
    kind: str
    form: str
    file: str
    container: str
    size_bytes: int
    version: VersionFacts
    tensors: int
    parameters: int
    precisions: dict[str, int]
    reduced: bool | None
    reduced_dims: dict[str, list[Any]]
    config_source: str
    config_fault: str
    trained: dict[str, Any]
    optimizer: OptimizerFacts | None
    modules: list[ModuleFacts]
    missing: MissingFacts
    weight_norm: dict[str, Any]
    layers: list[RowFacts]
    stand_out: dict[str, float]


@dataclass(frozen=True)
class Facts:
    """A file or a folder.

    Attributes:
        path, kind, run, downloads, parts, faults: as `Subject` has them.
        against: the other file, "" for none.
        nets: the generator first.
    """

    path: str
    kind: str
    against: str
    faults: list[str]
    run: dict[str, Any] | None
    downloads: list[dict[str, Any]] | None
    parts: dict[str, str]
    nets: list[NetFacts] = field(default_factory=list)


def gather(subject: Subject, against: Subject | None = None) -> Facts:
    """Everything there is to say.

    Args:
        subject: from `read_subject`.
        against: another, to compare with net by net.

    Raises:
        CheckpointError: the two have no net in common, or one is a v3 or v4 model.
    """
    others = {net.net: net for net in against.nets} if against is not None else {}
    if against is not None and not any(net.net in others for net in subject.nets):
        theirs, ours = (" and ".join(net.net for net in s.nets) for s in (against, subject))
        raise CheckpointError(
            f"{against.path}: holds a {theirs} and {subject.path} a {ours}, which have no layer in "
            "common; give --against a file of the same net"
        )
    return Facts(
        str(subject.path),
        subject.kind,
        str(against.path) if against is not None else "",
        subject.faults,
        subject.run,
        subject.downloads,
        subject.parts,
        [_net_facts(net, others.get(net.net)) for net in subject.nets],
    )


def _net_facts(net: Net, other: Net | None) -> NetFacts:
    expected = expect(net)
    tensors = net.tensors
    theirs = other.tensors if other is not None else None
    stored = forms(tensors, expected.normed)
    rates = expected.config.model.upsample_rates if expected.config is not None else None
    layers = []
    if net.net == "generator":
        layers = decoder_rows(tensors, stored, rates, theirs)
    elif net.net == "discriminator":
        layers = discriminator_rows(tensors, stored, theirs)
    modules = _modules(tensors, theirs)
    return NetFacts(
        net=net.net,
        kind=net.kind,
        form=net.form,
        file=str(net.file),
        container=net.container,
        size_bytes=net.file.stat().st_size,
        version=_version(net, expected),
        tensors=len(tensors),
        parameters=sum(module.parameters for module in modules),
        precisions=_precisions(tensors.values()),
        reduced=expected.is_reduced,
        reduced_dims={name: list(sizes) for name, sizes in expected.reduced().items()},
        config_source=net.config_source,
        config_fault=expected.reason,
        trained=_trained(net),
        optimizer=optimizer_facts(net, expected.model),
        modules=modules,
        missing=find_missing(net, expected, stored),
        weight_norm=_weight_norm(stored),
        layers=layers,
        stand_out=_stand_out(layers),
    )


def _version(net: Net, expected: Expected) -> VersionFacts:
    tensors, claims = net.tensors, dict(net.claims)
    if net.version_code is not None:
        claims["version code"] = net.version_code
    told: list[str] = []
    view = None
    if net.net == "discriminator":
        count = len({name.split(".")[1] for name in tensors})
        told = [f"{count} sub-discriminators (v1 and v2 have 6, the Pro models 8)"]
    elif net.net == "generator":
        rows = tensors[_TEXT_TABLE].shape[0]
        told = [f"{rows} rows in the phoneme table (v1: 322)"]
        if "sv_emb.weight" in tensors:
            kernel = next((t.shape[-1] for n, t in tensors.items() if _is_first_up(n)), "?")
            told.append("a layer for speaker vectors (Pro models only)")
            told.append(f"a first upsampling kernel of {kernel} (v2ProPlus: 20)")
        else:
            told.append("no layer for speaker vectors (Pro models only)")
        if net.form in ("pretrained", "exported"):
            view = judge_file(net.file, version=expected.version, text_rows=rows)
    return VersionFacts(expected.version, told, claims, view)


def _is_first_up(name: str) -> bool:
    return name in ("dec.ups.0.weight_v", "dec.ups.0.weight")


def _precisions(tensors: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for tensor in tensors:
        name = str(tensor.dtype).rpartition(".")[2]
        found[name] = found.get(name, 0) + 1
    return found


def _modules(tensors: Mapping[str, Any], theirs: Mapping[str, Any] | None) -> list[ModuleFacts]:
    groups: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        is_listed = parts[0] == "discriminators" and len(parts) > 1
        groups.setdefault(".".join(parts[: 2 if is_listed else 1]), {})[name] = tensor
    return [
        ModuleFacts(
            module,
            len(group),
            sum(math.prod(tensor.shape) for tensor in group.values()),
            _precisions(group.values()),
            _moved(group, theirs) if theirs is not None else None,
        )
        for module, group in sorted(groups.items(), key=lambda item: _place(item[0]))
    ]


def _place(module: str) -> tuple[int, list[Any]]:
    listed = module in _MODULES
    return _MODULES.index(module) if listed else len(_MODULES), natural(module)


def _moved(group: Mapping[str, Any], theirs: Mapping[str, Any]) -> float | None:
    away = length = 0.0
    for name, tensor in group.items():
        other = theirs.get(name)
        if other is not None and tuple(other.shape) == tuple(tensor.shape):
            ours, base = (mx.array(t).astype(mx.float32) for t in (tensor, other))
            away += float(mx.sum(mx.square(ours - base)))
            length += float(mx.sum(mx.square(base)))
    return ratio(math.sqrt(away), math.sqrt(length))


def _trained(net: Net) -> dict[str, Any]:
    told: dict[str, Any] = {"info": net.info, "epochs": None, "steps": None}
    match = re.fullmatch(r"([0-9]{1,12})epoch(?:_([0-9]{1,12})iteration)?", net.info)
    if match:
        told["epochs"] = int(match.group(1))
        told["steps"] = int(match.group(2)) if match.group(2) else None
    train = net.config.get("train")
    for table, names in ((train, _TRAINED_FIELDS), (net.config, _TOP_FIELDS)):
        for name in names:
            value = table.get(name) if isinstance(table, Mapping) else None
            told[name] = value if isinstance(value, (str, int, float)) else None
    return told


def _weight_norm(stored: Mapping[str, Form]) -> dict[str, Any]:
    named = {
        form: sorted((layer for layer, f in stored.items() if f == form), key=natural)
        for form in ("folded", "split", "mixed", "broken")
    }
    counted = {form: sum(found == form for found in stored.values()) for form in ("live", "plain")}
    return {**counted, **named}


def _stand_out(rows: list[RowFacts]) -> dict[str, float]:
    """The layers whose norm changed, the most changed first."""
    ratios = {layer.name: layer.levels.norm_ratio for row in rows for layer in row.layers}
    found = {name: value for name, value in ratios.items() if value is not None}
    changed = {name: value for name, value in found.items() if _change(value) > _CHANGED}
    return dict(sorted(changed.items(), key=lambda item: -_change(item[1])))


def _change(value: float) -> float:
    """How far a ratio is from 1, either way; 0 for what is no number, which is told elsewhere."""
    if math.isnan(value):
        return 0.0
    return abs(math.log(value)) if 0 < value < math.inf else math.inf
