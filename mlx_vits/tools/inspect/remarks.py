"""What a user should know of a net, in sentences: problems, and things worth a note."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mlx_vits.checkpoints.upstream import CODE_VERSIONS
from mlx_vits.tools.inspect.facts import NetFacts
from mlx_vits.tools.pages import Level, Remark, count, name_some, problems_first

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
    version = net.version
    if version.gpt_sovits is not None and not version.gpt_sovits.fits:
        if net.form == "pretrained":
            words = f"GPT-SoVITS trains from it as it is; to speak, it {version.gpt_sovits.words}"
            yield Remark("note", words)
        else:
            yield Remark("problem", f"GPT-SoVITS {version.gpt_sovits.words}")
    for place, claim in version.claims.items():
        stated = CODE_VERSIONS.get(claim, claim) if place == "version code" else claim
        if stated != version.version:
            yield Remark(
                "note", f"{place} says {stated}, its tensors are {version.version}: they count"
            )
    if net.config_fault and net.form != "state":
        yield Remark("problem", f"mlx_vits cannot load it: {net.config_fault}")


def _on_content(net: NetFacts) -> Iterable[Remark]:
    missing = net.missing
    if missing.lacking:
        share = f"{len(missing.lacking)} of the {missing.expected} tensors of its version"
        yield Remark("problem", f"lacks {share}: {listed(missing.lacking)}")
    if missing.unknown:
        names = listed(missing.unknown)
        yield Remark("problem", f"{_tensors(missing.unknown)} its version does not know: {names}")
    if missing.misshapen:
        shapes = [f"{n} is {a}, not {b}" for n, (a, b) in missing.misshapen.items()]
        yield Remark("problem", f"{_tensors(shapes)} of another shape: {listed(shapes)}")
    if missing.not_finite:
        names = listed(missing.not_finite)
        yield Remark("problem", f"{_tensors(missing.not_finite)} holding NaN or infinity: {names}")
    if missing.zero_channels:
        yield Remark(
            "problem",
            "a channel of zeros, which weight norm divides by, so that it speaks NaN: "
            f"{listed(missing.zero_channels)}",
        )
    if missing.quantizer_fitted is False:
        yield Remark(
            "problem",
            "its codebook is marked as never fitted (inited is 0): GPT-SoVITS stops with an error "
            "at the first use",
        )
    if not missing.compared and net.net != "content encoder":
        level: Level = "note" if net.form == "state" else "problem"
        yield Remark(level, "its sizes cannot be told, so nothing says which tensors it lacks")


def _tensors(names: Sequence[str]) -> str:
    return count(len(names), "tensor")


def _on_weight_norm(net: NetFacts) -> Iterable[Remark]:
    stored = net.weight_norm
    if net.form == "state" and (stored["folded"] or stored["split"]):
        yield Remark(
            "note",
            f"{len(stored['folded'])} layers are folded and {len(stored['split'])} split, as this "
            "run's --weight-norm has it; the voice that it writes is in GPT-SoVITS's form",
        )
        return
    if stored["folded"]:
        yield Remark(
            "problem",
            f"{len(stored['folded'])} layers are folded, a single weight in place of length g and "
            "direction v: GPT-SoVITS drops them without a word and speaks with random ones, "
            f"mlx_vits refuses the file ({listed(stored['folded'])})",
        )
    for form, words in (
        ("split", "as length g and direction v, where GPT-SoVITS has a single weight"),
        ("mixed", "twice, as a single weight and as length g and direction v"),
        ("broken", "by half, only one of length g and direction v"),
    ):
        if stored[form]:
            names = listed(stored[form])
            yield Remark("problem", f"{len(stored[form])} layers are stored {words}: {names}")


def _on_optimizer(net: NetFacts) -> Iterable[Remark]:
    facts = net.optimizer
    if facts is None:
        return
    if facts.not_finite:
        yield Remark(
            "problem", f"the optimizer holds NaN or infinity for {listed(facts.not_finite)}"
        )
    if facts.misshapen:
        yield Remark(
            "problem",
            f"the optimizer's moments are of another shape than {listed(facts.misshapen)}",
        )
    if len(facts.steps) > 1:
        yield Remark(
            "problem",
            f"its tensors were updated a different number of times, from {facts.steps[0]:,} to "
            f"{facts.steps[-1]:,}",
        )
    if not facts.with_moments:
        yield Remark("note", "the optimizer is as before its first step: it carries no moments")
        return
    if facts.without is None:
        yield Remark("problem", "the optimizer's numbers do not fit the tensors of its version")
        return
    odd = [name for name in facts.without if not name.startswith(_FROZEN)]
    if odd:
        parts = sorted({name.split(".")[0] for name in odd})
        yield Remark(
            "note", f"{_tensors(odd)} without moments, so not trained, in {', '.join(parts)}"
        )


def _on_use(net: NetFacts) -> Iterable[Remark]:
    missing = net.missing
    if missing.posterior is False:
        yield Remark(
            "note",
            "the posterior encoder (enc_q) is absent: it speaks, but cannot be trained from",
        )
    if missing.config_fields:
        yield Remark(
            "problem",
            "its configuration lacks what GPT-SoVITS reads to speak: "
            f"{listed(missing.config_fields)}",
        )
    if missing.discriminator:
        yield Remark(
            "note",
            f"no {missing.discriminator} beside it: training without its discriminator starts "
            "with a fresh one, which judges badly at first",
        )
    if net.reduced:
        yield Remark(
            "note", "GPT-SoVITS cannot open it: these sizes are fixed in its code, and larger"
        )
