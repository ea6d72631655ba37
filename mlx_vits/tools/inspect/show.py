"""The facts on a terminal: a few lines, what to know, and tables no wider than 100 columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlx_vits.models.discriminator import PRO_PERIODS
from mlx_vits.tools.inspect.facts import MODULES, NetFacts
from mlx_vits.tools.inspect.layers import RowFacts
from mlx_vits.tools.inspect.remarks import listed
from mlx_vits.tools.inspect.subject import Subject
from mlx_vits.tools.pages import Remark, count, pairs, remark_list, safe_text, standard_output

_FAR = 0.1  # a ratio this far from 1 stands out
_WRAPPED = "What it does"  # the column that may take several lines
_ORDINALS = {1: "", 2: "2nd ", 3: "3rd "}
_PERIODS = (1, *PRO_PERIODS)  # of the sub-discriminators


def show(facts: Subject[NetFacts], console: Console | None = None) -> None:
    """Print everything.

    Args:
        facts: from `gather`.
        console: standard output otherwise.
    """
    console = console or standard_output()
    console.print(safe_text(facts.path, "bold"))
    if len(facts.nets) > 1 or facts.run is not None or facts.downloads is not None or facts.parts:
        console.print(pairs(_about(facts)))
    _print_remarks(console, [Remark("problem", fault) for fault in facts.faults])
    for net in facts.nets:
        _show_net(console, net, facts)
    if facts.run is not None and not facts.against and facts.run.get("generator"):
        hint = f"Compare it with its base: --against {facts.run['generator']}"
        console.print(safe_text(hint), soft_wrap=True)


def _print_remarks(console: Console, found: Iterable[Remark]) -> None:
    if found:
        console.print()
        console.print(remark_list(found))


def _about(facts: Subject[NetFacts]) -> list[tuple[str, Any]]:
    run = facts.run or {}
    place = run.get("place") or {}
    rows: list[tuple[str, Any]] = [("kind", facts.kind), ("against", facts.against)]
    if run:
        options = run.get("options") or {}
        training = options.get("training") if isinstance(options, dict) else None
        given = training if isinstance(training, dict) else {}
        base = run.get("generator", "")
        gone = "" if not base or Path(base).exists() else " (no longer there)"
        rows += [
            ("voice", run.get("voice")),
            ("data", run.get("data")),
            ("base", f"{run.get('base', '')}: {base}{gone}" if base else ""),
            ("base's SHA-256", run.get("generator_sha256")),
            ("stands at", _place(place)),
            ("options", ", ".join(f"{name} {value}" for name, value in given.items())),
        ]
    for row in facts.downloads or []:
        source = f"{row.get('repository')}/{row.get('path')} at {str(row.get('revision'))[:12]}"
        rows.append(("downloaded", f"{source}, SHA-256 {row.get('sha256')}"))
    rows += [(name, words) for name, words in facts.parts.items()]
    return rows


def _place(place: dict[str, Any]) -> str:
    if "step" not in place:
        return ""
    words = f"step {place['step']}, epoch {place.get('epoch')}"
    score = place.get("best_score")
    if isinstance(score, float):
        words += f"; best at step {place.get('best_step')} (mel distance {score:.3f})"
    return words


def _show_net(console: Console, net: NetFacts, facts: Subject[NetFacts]) -> None:
    console.print()
    if net.file != str(facts.path):
        console.print(safe_text(net.file, "bold"))
    console.print(pairs(_identity(net)))
    _print_remarks(console, net.remarks)
    console.print()
    console.print(_module_table(net, bool(facts.against)))
    if net.layers:
        console.print()
        if net.net == "generator":
            console.print(safe_text("The decoder's layers, as the signal passes them"))
        console.print(_layer_table(net, bool(facts.against)))
        console.print()
        for line in _legend(net, facts.against):
            console.print(safe_text(line, "dim"))


def _identity(net: NetFacts) -> list[tuple[str, Any]]:
    version, size = net.version, f"{net.size_bytes / 1e6:.2f} MB"
    precisions = ", ".join(f"{count} {name}" for name, count in net.precisions.items())
    claims = ", ".join(f"{place} {claim}" for place, claim in version.claims.items())
    view = version.gpt_sovits
    told = f"{version.version}, told by {', '.join(version.told_by)}"
    return [
        ("kind", net.kind),
        ("container", f"{net.container}, {size}"),
        ("version", told if version.version else ""),
        ("also stated", claims),
        ("GPT-SoVITS", view.words if view is not None and view.fits else ""),
        ("holds", f"{net.tensors} tensors ({precisions}), {net.parameters:,} parameters"),
        ("sizes", _sizes(net)),
        ("trained", _trained(net.trained)),
        ("optimizer", _optimizer(net)),
        ("configuration", f"in {net.config_source}" if net.config_source else ""),
    ]


def _sizes(net: NetFacts) -> str:
    if net.sizes:
        return ", ".join(f"{size:,} {name}" for name, size in net.sizes.items())
    if net.reduced is None:
        return ""
    sizes = [f"{name} {ours} for {full}" for name, (ours, full) in net.reduced_dims.items()]
    return f"reduced: {', '.join(sizes)}" if sizes else "full, as GPT-SoVITS has them"


def _trained(trained: dict[str, Any]) -> str:
    words = []
    for number, unit in ((trained["epochs"], "epoch"), (trained["steps"], "step")):
        if number is not None:
            words.append(count(number, unit))
    if not words and trained["info"]:
        words.append(trained["info"])
    words += [
        f"{name} {trained[name]}"
        for name in ("name", "pretrained_s2G", "pretrained_s2D", "pretrain", "resume_step")
        if trained.get(name) not in (None, "")
    ]
    return ", ".join(map(str, words)) or "not stated"


def _optimizer(net: NetFacts) -> str:
    facts = net.optimizer
    if facts is None:
        return ""
    words = [f"{', '.join(f'{step:,}' for step in facts.steps[:3]) or 'no'} steps"]
    if facts.epoch is not None:
        words.append(f"epoch {facts.epoch} done")
    if facts.learning_rate is not None:
        words.append(f"learning rate {facts.learning_rate:g} before decay")
    if facts.rates:
        words.append(f"now {', '.join(f'{rate:.4g}' for rate in dict.fromkeys(facts.rates))}")
    words.append(f"moments of {facts.with_moments} of {facts.tensors} tensors")
    if facts.without:
        words.append(f"none of {listed(facts.without)}")
    return "; ".join(words)


class _Column(NamedTuple):
    """A column of a table; `cell` takes the row's facts."""

    name: str
    cell: Callable[[Any], Text]
    is_number: bool = False


def _table(columns: Sequence[_Column], rows: Iterable[Any]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(
            column.name,
            justify="right" if column.is_number else "left",
            no_wrap=column.name != _WRAPPED,
            overflow="fold",
            header_style="bold",
        )
    for row in rows:
        table.add_row(*(column.cell(row) for column in columns))
    return table


def _module_table(net: NetFacts, is_compared: bool) -> Table:
    columns = [
        _Column("Part", lambda module: safe_text(module.name)),
        _Column(_WRAPPED, lambda module: Text(_what_is(module.name))),
        _Column("Tensors", lambda module: Text(f"{module.tensors:,}"), True),
        _Column("Parameters", lambda module: Text(f"{module.parameters:,}"), True),
        _Column("Precision", lambda module: safe_text(", ".join(module.precisions))),
    ]
    if is_compared:
        columns.append(_Column("Moved", lambda module: _number(module.moved), True))
    return _table(columns, net.modules)


def _what_is(module: str) -> str:
    family, _, index = module.partition(".")
    if family != "discriminators" or not index.isdigit():
        return MODULES.get(module, "")
    if int(index) >= len(_PERIODS):
        return ""
    period = _PERIODS[int(index)]
    return f"judges every {_ORDINALS.get(period, f'{period}th ')}sample"


def _layer_table(net: NetFacts, is_compared: bool) -> Table:
    columns = [
        _Column("Layer", lambda row: safe_text(row.name)),
        _Column("Channels", lambda row: Text(_channels(row))),
        _Column("Kernel", lambda row: _once(layer.shape[2] for layer in row.layers if layer.shape)),
        _Column("Weight", lambda row: _once(layer.form for layer in row.layers)),
        _Column("Norm", lambda row: _number(row.levels.norm), True),
        _Column("Mean g", lambda row: _number(row.levels.mean_g), True),
    ]
    if net.net == "generator":
        columns.append(_Column("Gain", lambda row: _number(row.levels.gain), True))
    if is_compared:
        columns += [
            _Column("Norm ×", lambda row: _ratio(row.levels.norm_ratio), True),
            _Column("g ×", lambda row: _ratio(row.levels.g_ratio), True),
            _Column("Moved", lambda row: _number(row.levels.moved), True),
        ]
    return _table(columns, net.layers)


def _channels(row: RowFacts) -> str:
    if len(row.layers) > 1:
        return f"{len(row.layers)} layers"
    return " → ".join(map(str, row.layers[0].channels))


def _once(values: Iterable[Any]) -> Text:
    return Text(", ".join(dict.fromkeys(map(str, values))))


def _ratio(value: float | None) -> Text:
    is_far = value is not None and not abs(value - 1) <= _FAR
    return Text(_format(value), "bold yellow" if is_far else "")


def _number(value: float | None) -> Text:
    return Text(_format(value))


def _format(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.0e}"


def _legend(net: NetFacts, against: str) -> list[str]:
    stored = net.weight_norm
    lines = [
        "Weight  live: magnitude g and direction v, as trained; plain: a single weight. "
        f"{stored['live']} layers of this net are live."
    ]
    if stored["folded"]:
        lines.append("        folded: a single weight, where GPT-SoVITS has g and v.")
    lines.append("Norm    Frobenius norm of the effective weight, g v / ‖v‖.")
    if net.net == "generator":
        lines.append("Gain    RMS of the output for noise of RMS 1; of several layers the mean.")
    if against:
        lines += [
            f"×       as a ratio to {against}; 1.000 is unchanged.",
            "Moved   distance from that file's numbers, as a share of their norm.",
        ]
        named = [f"{name} ×{_format(value)}" for name, value in net.stand_out.items()]
        words = f"Changed most: {listed(named)}." if named else "No layer's norm changed by 5 %."
        lines.append(words)
    return lines
