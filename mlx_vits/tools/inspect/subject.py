"""What is inspected: the nets in a file or folder, as they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

NetName = Literal["generator", "discriminator", "content encoder", "GPT"]
Form = Literal["pretrained", "exported", "resume", "voice", "part", "state"]


class OptimizerFile(NamedTuple):
    """The optimizer in a file, in the form of whoever wrote it."""

    state: Mapping[Any, Any]  # PyTorch's `state` by index, or MLX's trees flattened, by name
    groups: list[Any]  # PyTorch's `param_groups`; empty in MLX's form
    epoch: int | None = None  # of a resume file, the epoch that was finished
    learning_rate: float | None = None  # of a resume file, before any decay


@dataclass(frozen=True)
class Net:
    """One net as it is stored; words of a file that are not there are ""."""

    net: NetName
    kind: str  # what it is, in words
    form: Form
    file: Path
    container: str  # the kind of file, in words
    tensors: Mapping[str, Any]  # by upstream's names, PyTorch's axes
    config: Mapping[str, Any] = field(default_factory=dict)  # as it is stated, upstream's keys
    config_source: str = ""  # where it is stated, in words
    info: str = ""  # how far it was trained, in upstream's words
    claims: Mapping[str, str] = field(default_factory=dict)  # versions stated beside the config
    optimizer: OptimizerFile | None = None  # of a resume file or a run's state
    lacks_discriminator: str = ""  # name of the file that is missing beside a generator


N = TypeVar("N")  # `Net` as it is read, `NetFacts` once it is worked out


@dataclass
class Subject(Generic[N]):
    """A file or folder with the nets in it, the generator first."""

    path: Path
    kind: str  # in words
    against: str = ""  # the file or folder that it is compared with
    faults: list[str] = field(default_factory=list)  # what could not be used, in sentences
    run: dict[str, Any] | None = None  # of a run or its state: `run.json` and the place
    downloads: list[dict[str, Any]] | None = None  # of a base: the files it was made from
    parts: dict[str, str] = field(default_factory=dict)  # other files of it, described, by path
    nets: list[N] = field(default_factory=list)
