"""Groups of command-line options, each declared once and parsed once.

A group is a dataclass whose fields are options. A command takes groups as parameters, and `grouped`
spells them out for typer:

    @report_errors
    @grouped
    def main(clips: ClipArguments, training: TrainingArguments) -> None: ...

A field is named after the value it sets, such as `pretrained_reg_strength` of `VITSTrainingConfig`;
its flag is the same with dashes unless one is declared (`--pretrained-reg`). An option is None
unless given, so that a voice can suggest a value of its own and a resumed run keeps what it had.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterator
from copy import copy
from dataclasses import fields
from typing import Annotated, Any, ClassVar, TypeVar, get_type_hints

import typer
from typer.models import OptionInfo

from mlx_vits.errors import UserError

G = TypeVar("G", bound="Group")


class Group:
    """Options that belong together; subclasses are dataclasses of options and of groups.

    Attributes:
        panel: the heading in the help.
    """

    panel: ClassVar[str | None] = None

    def given(self) -> dict[str, Any]:
        """The options that were given, by field; those of groups within are included."""
        found: dict[str, Any] = {}
        for part in fields(self):  # type: ignore[arg-type]
            value = getattr(self, part.name)
            if isinstance(value, Group):
                found |= value.given()
            elif value is not None:
                found[part.name] = value
        return found

    def refuse_all_but(self, allowed: Collection[str], words: str) -> None:
        """Refuse options that a command cannot honour in the way it is used.

        Args:
            allowed: fields that may be given.
            words: what is said of the first of the others.

        Raises:
            UserError: there is another one.
        """
        for name in sorted(self.given()):
            if name not in allowed:
                raise UserError(f"{self.flag_of(name)}: {words}; leave it out")

    @classmethod
    def flag_of(cls, name: str) -> str:
        """The flag of a field, such as "--pretrained-reg"."""
        options = {part.name: part.annotation for part in _spell_out(cls)}
        declared = _option_of(options[name]).param_decls or (f"--{name.replace('_', '-')}",)
        return declared[0].partition("/")[0]


def option(text: str, default: Any = None, flag: str | None = None, **more: Any) -> Any:
    """Declare an option that is None unless given.

    Args:
        text: its help.
        default: what the help shows as its default; None for nothing.
        flag: as "--name" or "--name/--no-name"; None for the field's name.
        more: further arguments of `typer.Option`.
    """
    shown = False if default is None else str(default)
    flags = () if flag is None else (flag,)
    return typer.Option(..., *flags, help=text, show_default=shown, **more)


def grouped(command: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function whose parameters include groups a command that typer understands."""
    parameters = inspect.signature(command, eval_str=True).parameters
    groups = {name: part.annotation for name, part in parameters.items() if _is_group(part)}
    options: list[inspect.Parameter] = []
    for name, part in parameters.items():
        options += _spell_out(groups[name]) if name in groups else [_keyword(part)]

    @functools.wraps(command)
    def spelled_out(**values: Any) -> Any:
        built = {name: _build(kind, values) for name, kind in groups.items()}
        others = {name: values[name] for name in parameters if name not in groups}
        return command(**built, **others)

    spelled_out.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    spelled_out.__annotations__ = {part.name: part.annotation for part in options}
    return spelled_out


def _keyword(part: inspect.Parameter) -> inspect.Parameter:
    return part.replace(kind=inspect.Parameter.KEYWORD_ONLY)


def _is_group(part: inspect.Parameter) -> bool:
    return isinstance(part.annotation, type) and issubclass(part.annotation, Group)


def _parts(kind: type[Group]) -> Iterator[inspect.Parameter]:
    """The fields of a group as parameters of a function."""
    hints = get_type_hints(kind, include_extras=True)
    for part in fields(kind):  # type: ignore[arg-type]
        yield inspect.Parameter(
            part.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hints[part.name]
        )


def _spell_out(kind: type[Group]) -> Iterator[inspect.Parameter]:
    """The options of a group and of those within."""
    for part in _parts(kind):
        if _is_group(part):
            yield from _spell_out(part.annotation)
        else:
            shown = copy(_option_of(part.annotation))
            shown.rich_help_panel = kind.panel
            yield part.replace(annotation=Annotated[part.annotation.__origin__, shown])


def _option_of(annotation: Any) -> OptionInfo:
    found: OptionInfo = annotation.__metadata__[0]
    return found


def _build(kind: type[G], values: dict[str, Any]) -> G:
    return kind(
        **{
            part.name: _build(part.annotation, values) if _is_group(part) else values[part.name]
            for part in _parts(kind)
        }
    )
