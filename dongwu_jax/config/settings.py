"""Every setting as a reader sees it: name, values, default and meaning, read from the models."""

import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from dongwu_jax.config.run import RunConfig

_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
_TYPES = {str: "text", type(None): "null"}


@dataclass(frozen=True)
class Setting:
    """One setting of a run."""

    name: str  # dotted, as on the command line
    values: tuple[str, ...]  # what it may be: kinds with their bounds, or the choices themselves
    default: str | None  # as YAML writes it; None: it must be given
    meaning: str


@dataclass(frozen=True)
class SettingsOfSection:
    """A section such as `model`, or one inside it such as `model.rope_scaling`."""

    name: str  # ends in [] where it is the entry of a list
    meaning: str
    settings: tuple[Setting, ...]


def sections() -> Iterator[SettingsOfSection]:
    """All sections of a run in order, each followed by those inside it."""
    for name, field in RunConfig.model_fields.items():
        assert isinstance(field.annotation, type)
        yield from _section(name, field.annotation)


def _section(name: str, section_class: type[BaseModel]) -> Iterator[SettingsOfSection]:
    fields = section_class.model_fields
    settings = tuple(_setting(f"{name}.{key}", field) for key, field in fields.items())
    yield SettingsOfSection(name, " ".join((section_class.__doc__ or "").split()), settings)
    seen = set()
    for key, field in fields.items():
        for suffix, inner in _inner_sections(field.annotation):
            if inner not in seen:  # two settings may share one kind of entry
                seen.add(inner)
                yield from _section(f"{name}.{key}{suffix}", inner)


def _inner_sections(annotation: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    """The sections that a value is, or ("[]") has as its entries."""
    if _is_section(annotation):
        yield "", annotation
    suffix = "[]" if get_origin(annotation) is list else ""
    for argument in get_args(annotation):
        for inner_suffix, inner in _inner_sections(argument):
            yield suffix + inner_suffix, inner


def _setting(name: str, field: FieldInfo) -> Setting:
    default = field.get_default(call_default_factory=True)
    text = None if default is PydanticUndefined else _value_text(default)
    values = _values(field.annotation, field.metadata)
    return Setting(name, values, text, field.description or "")


def _values(annotation: Any, bounds: Sequence[Any]) -> tuple[str, ...]:
    """What a value may be, such as ("int > 0", "null")."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _values(arguments[0], arguments[1:])
    if origin is Literal:
        return tuple(str(choice) for choice in arguments)
    if origin in (Union, types.UnionType):
        return tuple(value for choice in arguments for value in _values(choice, ()))
    if annotation is bool:
        return ("true", "false")
    return (_type_text(annotation) + _bounds_text(bounds),)


def _type_text(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is list and _is_section(arguments[0]):
        return "list of sections"
    if origin in (list, tuple):  # our tuples are of any length
        return f"list of {either(_values(arguments[0], ()))}"
    if origin is dict:
        key, value = (either(_values(argument, ())) for argument in arguments)
        return f"mapping of {key} to {value}"
    if _is_section(annotation):
        return "section"
    return _TYPES.get(annotation, annotation.__name__.lower())


def either(values: Sequence[str]) -> str:
    """`a, b or c`."""
    *others, last = values
    return f"{', '.join(others)} or {last}" if others else last


def _bounds_text(bounds: Sequence[Any]) -> str:
    """Such as ` > 0 and <= 100`."""
    found = []
    for entry in bounds:
        for bound in entry.metadata if isinstance(entry, FieldInfo) else (entry,):
            found += [
                f"{sign} {_value_text(getattr(bound, name))}"
                for name, sign in _SIGNS.items()
                if hasattr(bound, name)
            ]
    found.sort(key=lambda text: text.startswith("<"))  # the lower one first
    return f" {' and '.join(found)}" if found else ""


def _value_text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value_text, value))}]"
    if isinstance(value, float):
        return f"{value:.10g}"
    return str(value)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
