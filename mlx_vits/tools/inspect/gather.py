"""All facts about the nets in a file or folder."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import mlx.core as mx

from mlx_vits.checkpoints.contents import (
    BRANCHES,
    FIRST_UPSAMPLING,
    PLUS_KERNEL,
    PRO_BRANCHES,
    TEXT_TABLE,
    V1_SYMBOLS,
)
from mlx_vits.config import T2SConfig
from mlx_vits.errors import CheckpointError
from mlx_vits.system.faults import unreadable
from mlx_vits.tools.inspect.expected import Expected, expect, find_missing
from mlx_vits.tools.inspect.facts import MODULES, ModuleFacts, NetFacts, VersionFacts
from mlx_vits.tools.inspect.layers import (
    Form,
    RowFacts,
    Tensors,
    decoder_rows,
    discriminator_rows,
    forms,
    natural,
    ratio,
)
from mlx_vits.tools.inspect.optimizers import optimizer_facts
from mlx_vits.tools.inspect.remarks import remarks
from mlx_vits.tools.inspect.subject import Net, Subject
from mlx_vits.tools.inspect.upstream_guess import FIRST_BYTES, UpstreamView, judge

_TRAINED_FIELDS = ("pretrained_s2G", "pretrained_s2D")  # of `train`
_TOP_FIELDS = ("name", "pretrain", "resume_step")
_CHANGED = 0.05  # of a norm, as the logarithm of its ratio


def gather(subject: Subject[Net], against: Subject[Net] | None = None) -> Subject[NetFacts]:
    """Work out everything there is to say.

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
    return Subject(
        subject.path,
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
    layers = []
    if net.net == "generator":
        rates = expected.config.model.upsample_rates if expected.config is not None else ()
        layers = decoder_rows(tensors, stored, rates, theirs)
    elif net.net == "discriminator":
        layers = discriminator_rows(tensors, stored, theirs)
    modules = _modules(tensors, theirs)
    reduced = expected.reduced_dims()
    facts = NetFacts(
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
        reduced=None if expected.config is None else bool(reduced),
        reduced_dims=reduced,
        sizes=_gpt_sizes(net),
        config_source=net.config_source,
        config_fault=expected.reason,
        trained=_trained(net),
        optimizer=optimizer_facts(net, expected.model),
        modules=modules,
        missing=find_missing(net, expected, stored),
        weight_norm=_weight_norm(stored),
        layers=layers,
        stand_out=_stand_out(layers),
        remarks=[],
    )
    return replace(facts, remarks=remarks(facts))


def _version(net: Net, expected: Expected) -> VersionFacts:
    tensors = net.tensors
    stated = {
        "config": net.config.get("version"),
        "config.model": _table(net, "model").get("version"),
    }
    claims = {f"{k}.version": str(version) for k, version in stated.items() if version is not None}
    told: list[str] = []
    view = None
    if net.net == "discriminator":
        count = len({name.split(".")[1] for name in tensors})
        told = [
            f"{count} sub-discriminators (v1 and v2 have {BRANCHES}, the Pro models {PRO_BRANCHES})"
        ]
    elif net.net == "GPT":
        told = ["its phoneme table (v1: 512 rows, later versions: 732)"]
    elif net.net == "generator":
        rows = tensors[TEXT_TABLE].shape[0]
        told = [f"{rows} rows in the phoneme table (v1: {V1_SYMBOLS})"]
        if "sv_emb.weight" in tensors:
            first = next((t for name, t in tensors.items() if name in FIRST_UPSAMPLING), None)
            kernel = "?" if first is None else first.shape[-1]
            told.append("a layer for speaker vectors (Pro models only)")
            told.append(f"a first upsampling kernel of {kernel} (v2ProPlus: {PLUS_KERNEL})")
        else:
            told.append("no layer for speaker vectors (Pro models only)")
        if net.form in ("pretrained", "exported"):
            view = _upstream_view(net, expected.version, rows)
    return VersionFacts(expected.version, told, claims | dict(net.claims), view)


def _upstream_view(net: Net, version: str, text_rows: int) -> UpstreamView:
    try:
        with net.file.open("rb") as file:
            head = file.read(FIRST_BYTES)
    except OSError as error:
        raise CheckpointError(unreadable(net.file, error)) from error
    return judge(head, net.file.stat().st_size, version=version, text_rows=text_rows)


def _gpt_sizes(net: Net) -> dict[str, int]:
    if net.net != "GPT":
        return {}
    config = T2SConfig.from_dict(net.config, source=str(net.file))
    return {
        "layers": config.n_layer,
        "wide": config.hidden_dim,
        "heads": config.head,
        "codes": config.EOS,
        "phonemes": config.phoneme_vocab_size,
    }


def _table(net: Net, section: str) -> Mapping[str, Any]:
    table = net.config.get(section)
    return table if isinstance(table, Mapping) else {}


def _precisions(tensors: Iterable[Any]) -> dict[str, int]:
    return dict(Counter(str(tensor.dtype).rpartition(".")[2] for tensor in tensors))


def _modules(tensors: Tensors, theirs: Tensors | None) -> list[ModuleFacts]:
    groups: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        is_listed = parts[0] == "discriminators" and len(parts) > 1
        groups.setdefault(".".join(parts[: 2 if is_listed else 1]), {})[name] = tensor
    order = {name: index for index, name in enumerate(MODULES)}
    return [
        ModuleFacts(
            module,
            len(groups[module]),
            sum(math.prod(tensor.shape) for tensor in groups[module].values()),
            _precisions(groups[module].values()),
            _moved(groups[module], theirs) if theirs is not None else None,
        )
        for module in sorted(groups, key=lambda m: (order.get(m, len(order)), natural(m)))
    ]


def _moved(group: Tensors, theirs: Tensors) -> float | None:
    away = length = 0.0
    for name, tensor in group.items():
        other = theirs.get(name)
        if other is not None and tuple(other.shape) == tuple(tensor.shape):
            ours, base = (mx.array(t).astype(mx.float32) for t in (tensor, other))
            away += float(mx.sum(mx.square(ours - base)))
            length += float(mx.sum(mx.square(base)))
    return ratio(math.sqrt(away), math.sqrt(length))


def _trained(net: Net) -> dict[str, Any]:
    match = re.fullmatch(r"([0-9]{1,12})epoch(?:_([0-9]{1,12})iteration)?", net.info)
    epochs, steps = match.groups() if match else (None, None)
    if of_gpt := re.fullmatch(r"GPT-e([0-9]{1,12})", net.info):
        epochs = of_gpt[1]
    told: dict[str, Any] = {
        "info": net.info,
        "epochs": int(epochs) if epochs else None,
        "steps": int(steps) if steps else None,
    }
    for table, names in ((_table(net, "train"), _TRAINED_FIELDS), (net.config, _TOP_FIELDS)):
        for name in names:
            value = table.get(name)
            told[name] = value if isinstance(value, (str, int, float)) else None
    return told


def _weight_norm(stored: Mapping[str, Form]) -> dict[str, Any]:
    named = {
        form: sorted((layer for layer, f in stored.items() if f == form), key=natural)
        for form in ("folded", "split", "mixed", "broken")
    }
    counts = Counter(stored.values())
    return {"live": counts["live"], "plain": counts["plain"], **named}


def _stand_out(rows: list[RowFacts]) -> dict[str, float]:
    ratios = {layer.name: layer.levels.norm_ratio for row in rows for layer in row.layers}
    found = {name: value for name, value in ratios.items() if value is not None}
    changed = {name: value for name, value in found.items() if _change(value) > _CHANGED}
    return dict(sorted(changed.items(), key=lambda item: -_change(item[1])))


def _change(value: float) -> float:
    """How far a ratio is from 1, either way; 0 for NaN, which is reported elsewhere."""
    if math.isnan(value):
        return 0.0
    return abs(math.log(value)) if 0 < value < math.inf else math.inf
