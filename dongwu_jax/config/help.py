"""The text of `--help-config`: every setting with its type, default and meaning."""

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from dongwu_jax.config.run import RunConfig


def config_help() -> str:
    """List every setting as `section.field  type = default` with its explanation below."""
    lines = []
    for section_name, section in RunConfig.model_fields.items():
        section_class = section.annotation
        assert isinstance(section_class, type)
        lines.append(f"{section_name}: {(section_class.__doc__ or '').splitlines()[0]}")
        lines += _section_lines(section_class, prefix=section_name)
        lines.append("")
    return "\n".join(lines)


def _section_lines(section_class: type[BaseModel], prefix: str) -> list[str]:
    lines = []
    for name, field in section_class.model_fields.items():
        default = _default_text(field.get_default(call_default_factory=True))
        lines.append(f"  {prefix}.{name}  {_type_text(field.annotation)}{default}")
        lines.append(f"      {field.description}")
        nested = [a for a in get_args(field.annotation) if _is_section(a)]
        for inner in nested:
            lines += _section_lines(inner, f"{prefix}.{name}")
    return lines


def _default_text(default: Any) -> str:
    if default is PydanticUndefined:
        return " (required)"
    if default is None:
        return " = null"
    if isinstance(default, bool):
        return f" = {str(default).lower()}"
    return f" = {default}"


def _type_text(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _type_text(get_args(annotation)[0])
    if origin is Literal:
        return " | ".join(str(choice) for choice in get_args(annotation))
    if origin in (Union, types.UnionType):
        return " | ".join(_type_text(choice) for choice in get_args(annotation))
    if origin in (list, dict):
        inner = ", ".join(_type_text(argument) for argument in get_args(annotation))
        return f"{origin.__name__}[{inner}]"
    return "null" if annotation is type(None) else annotation.__name__


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
