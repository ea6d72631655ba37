"""What a user should know of a net, in sentences: problems, and things worth a note."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mlx_vits.checkpoints.upstream import CODE_VERSIONS
from mlx_vits.tools.inspect.facts import NetFacts
from mlx_vits.tools.pages import Remark, are, count, name_some, note, problem, problems_first

_FROZEN = "ssl_proj."  # no gradient ever reaches it, in GPT-SoVITS either


def remarks(net: NetFacts) -> list[Remark]:
    """Return all there is to remark on, problems first, each without a full stop."""
    return problems_first(
        [
            *_on_version(net),
            *_on_content(net),
            *_on_weight_norm(net),
            *_on_optimizer(net),
            *_on_use(net),
        ]
    )


def listed(names: Sequence[str]) -> str:
    return name_some(names, 4)


def _on_version(net: NetFacts) -> Iterable[Remark]:
    found, view = net.version.version, net.version.gpt_sovits
    if view is not None and not view.fits:
        if net.form == "pretrained":
            yield note(f"GPT-SoVITS trains from it as it is; to speak, it {view.words}")
        else:
            yield problem(f"GPT-SoVITS {view.words}")
    for place, claim in net.version.claims.items():
        stated = CODE_VERSIONS.get(claim, claim) if place == "version code" else claim
        if stated != found:
            yield note(f"{place} says {stated}, but its tensors are {found}, which is what counts")
    if net.config_fault and net.form != "state":
        yield problem(f"mlx_vits cannot load it: {net.config_fault}")


def _on_content(net: NetFacts) -> Iterable[Remark]:
    missing = net.missing
    shapes = [f"{n} is {a}, not {b}" for n, (a, b) in missing.misshapen.items()]
    lacking = f"{len(missing.lacking)} of the {missing.expected} tensors of its version"
    for names, words in (
        (missing.lacking, f"lacks {lacking}"),
        (missing.unknown, f"has {_tensors(missing.unknown)} that its version does not"),
        (shapes, f"has {_tensors(shapes)} of the wrong shape"),
        (missing.not_finite, f"{_tensors(missing.not_finite)} holding NaN or infinity"),
        (
            missing.zero_channels,
            "weight norm divides by a channel of zeros, so that the output is NaN",
        ),
    ):
        if names:
            yield problem(f"{words}: {listed(names)}")
    if missing.quantizer_fitted is False:
        yield problem(
            "its codebook is marked as never fitted (inited is 0): GPT-SoVITS stops with an error "
            "at the first use"
        )
    if not missing.compared and net.net != "content encoder":
        words = "its sizes cannot be determined, so missing tensors go unnoticed"
        yield note(words) if net.form == "state" else problem(words)


def _tensors(names: Sequence[str]) -> str:
    return count(len(names), "tensor")


def _on_weight_norm(net: NetFacts) -> Iterable[Remark]:
    stored = net.weight_norm
    if net.form == "state" and (stored["folded"] or stored["split"]):
        yield note(
            f"{len(stored['folded'])} layers are folded and {len(stored['split'])} split, as this "
            "run's --weight-norm has it; the voice that it writes is in GPT-SoVITS's form"
        )
        return
    for form, words in (
        (
            "folded",
            "folded, a single weight in place of magnitude g and direction v: GPT-SoVITS drops "
            "them without a word and speaks with random ones, mlx_vits refuses the file",
        ),
        ("split", "stored as magnitude g and direction v, where GPT-SoVITS has a single weight"),
        ("mixed", "stored twice, as a single weight and as magnitude g and direction v"),
        ("broken", "incomplete, with only one of magnitude g and direction v"),
    ):
        if stored[form]:
            yield problem(f"{are(len(stored[form]), 'layer')} {words}: {listed(stored[form])}")


def _on_optimizer(net: NetFacts) -> Iterable[Remark]:
    facts = net.optimizer
    if facts is None:
        return
    if facts.not_finite:
        yield problem(f"the optimizer holds NaN or infinity for {listed(facts.not_finite)}")
    if facts.misshapen:
        yield problem(f"the optimizer's moments differ in shape from {listed(facts.misshapen)}")
    if len(facts.steps) > 1:
        yield problem(
            f"its tensors were updated a different number of times, from {facts.steps[0]:,} to "
            f"{facts.steps[-1]:,}"
        )
    if not facts.with_moments:
        yield note("the optimizer has not taken a step yet: it has no moments")
    elif facts.without is None:
        yield problem("the optimizer's indices do not fit the tensors of its version")
    elif odd := [name for name in facts.without if not name.startswith(_FROZEN)]:
        parts = sorted({name.split(".")[0] for name in odd})
        yield note(f"{_tensors(odd)} without moments, so not trained, in {', '.join(parts)}")


def _on_use(net: NetFacts) -> Iterable[Remark]:
    missing = net.missing
    if missing.posterior is False:
        yield note("it has no posterior encoder (enc_q): it speaks, but cannot be trained from")
    if missing.config_fields:
        fields = listed(missing.config_fields)
        yield problem(f"its configuration lacks what GPT-SoVITS reads to speak: {fields}")
    if missing.discriminator:
        yield note(
            f"no {missing.discriminator} beside it: training without its discriminator starts "
            "with a fresh one, which gives poor feedback at first"
        )
    if net.reduced:
        yield note("GPT-SoVITS cannot open it: these sizes are fixed in its code, and larger")
