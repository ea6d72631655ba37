"""What is inspected: the nets that a file or a folder holds, as they lie there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

NetName = Literal["generator", "discriminator", "content encoder"]
Form = Literal["pretrained", "exported", "resume", "voice", "part", "state"]


class OptimizerFile(NamedTuple):
    """What a file holds of an optimizer, in the form of whoever wrote it.

    Attributes:
        state: PyTorch's `state` by index, or MLX's trees flattened, by name.
        groups: PyTorch's `param_groups`; empty in MLX's form.
    """

    state: Mapping[Any, Any]
    groups: list[Any]


@dataclass(frozen=True)
class Net:
    """One net as it lies in a file.

    Attributes:
        net: which.
        kind: what it is, in words.
        form: where it comes from.
        file: that holds it.
        container: the kind of that file, in words.
        tensors: PyTorch's axes, upstream's names.
        config: upstream's nested dictionary as it is stated, or empty.
        config_source: where it is stated, in words, "" where nowhere.
        info: how far it was trained, in upstream's words, or "".
        claims: other places that state a version, and which.
        version_code: the two digits over the first bytes of a `.pth`, or None.
        iteration: of a resume file, the epoch that was done.
        learning_rate: of a resume file, before any decay.
        optimizer: of a resume file or a run's state.
        companion: the discriminator that a generator of such a name has beside it, and whether it
            is there; None where the name says nothing.
    """

    net: NetName
    kind: str
    form: Form
    file: Path
    container: str
    tensors: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    config_source: str = ""
    info: str = ""
    claims: Mapping[str, str] = field(default_factory=dict)
    version_code: str | None = None
    iteration: int | None = None
    learning_rate: float | None = None
    optimizer: OptimizerFile | None = None
    companion: tuple[Path, bool] | None = None


@dataclass
class Subject:
    """What is inspected.

    Attributes:
        path: as it was found.
        kind: in words.
        nets: those it holds, the generator first.
        faults: what could not be used, in sentences.
        run: of a run's folder or state, what its `run.json` and its place say.
        downloads: of a base, which files it was made from.
        parts: other files that belong to it, in words by path.
    """

    path: Path
    kind: str
    nets: list[Net]
    faults: list[str] = field(default_factory=list)
    run: dict[str, Any] | None = None
    downloads: list[dict[str, Any]] | None = None
    parts: dict[str, str] = field(default_factory=dict)
