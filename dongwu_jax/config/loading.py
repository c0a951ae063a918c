"""From YAML files and `a.b=c` overrides to a checked RunConfig, with errors that help."""

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from dongwu_jax.config.run import RunConfig
from dongwu_jax.errors import UserError
from dongwu_jax.input_files import read_text

Settings = dict[str, Any]

_LARGEST_FILE = 1 << 20  # bytes
_MOST_VALUES = 100_000
_MOST_BITS = 64
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
_MOST_PROBLEMS = 20
_LONGEST_VALUE = 100  # characters


class _StrictLoader(yaml.SafeLoader):
    """Plain YAML data, in which no key may stand twice: the second would silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) < len(node.value):
            keys = [key.value for key, _ in node.value]
            twice = next((key for key in keys if keys.count(key) > 1), keys[-1])
            raise yaml.MarkedYAMLError(
                problem=f"key {twice!r} stands twice", problem_mark=node.start_mark
            )
        return mapping


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run from a YAML file.

    Args:
        path: the file; its `base:` (relative to it) is read first and then overlaid.
        overrides: `section.field=value` texts, the value in YAML syntax.

    Raises:
        UserError: a file is missing or not YAML, a key is unknown, a value is impossible.
    """
    settings = _read_with_bases(Path(path), chain=())
    for override in overrides:
        _apply_override(settings, override)
    return parse_config(settings, source=str(path))


def parse_config(settings: Settings, source: str) -> RunConfig:
    """Check plain settings and build the RunConfig.

    Raises:
        UserError: naming `source`, the field, the value and the fix.
    """
    if problem := _impossible_value(settings):
        raise UserError(f"{source}: {problem}")
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        found = error.errors()
        problems = [_explain(dict(problem)) for problem in found[:_MOST_PROBLEMS]]
        if len(found) > _MOST_PROBLEMS:
            problems.append(f"and {len(found) - _MOST_PROBLEMS} more")
        raise UserError(f"{source}: " + "\n  ".join(problems)) from None


def dump_config(config: RunConfig) -> str:
    """The resolved run as YAML that `load_config` reads back to the same run."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_with_bases(path: Path, chain: tuple[Path, ...]) -> Settings:
    """Read a YAML mapping, overlaid on the file that its `base:` names."""
    resolved = Path(os.path.realpath(path))  # Path.resolve fails on a loop of links
    if resolved in chain:
        files = " -> ".join(str(file) for file in (*chain, resolved))
        raise UserError(f"{path}: `base:` goes in a circle: {files}")
    settings = _parse_yaml(read_text(path, _LARGEST_FILE), f"{path}: is not YAML")
    settings = {} if settings is None else settings
    if not isinstance(settings, dict):
        raise UserError(f"{path}: must hold sections such as `model:`, not a {_kind(settings)}")
    base = settings.pop("base", None)
    if base is None:
        return settings
    if not isinstance(base, str):
        raise UserError(f"{path}: base must be the path of a YAML file, not {_shown(base)}")
    try:
        below = _read_with_bases(path.parent / base, (*chain, resolved))
    except UserError as error:
        raise UserError(f"{path}: base: {error}") from None
    return overlay(below, settings)


def _parse_yaml(text: str, problem: str) -> Any:
    """What a text in YAML says.

    Raises:
        UserError: beginning with `problem`.
    """
    try:
        value = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{problem}: {_yaml_problem(error)}") from None
    except RecursionError:
        raise UserError(f"{problem}: it is nested too deeply") from None
    except ValueError as error:  # a date that is none, a number of thousands of digits
        raise UserError(f"{problem}: {error}") from None
    except (TypeError, AttributeError, KeyError, IndexError):  # a tag that asks for another kind
        raise UserError(f"{problem}: a value does not fit its tag (!!...)") from None
    if _too_large(value):
        raise UserError(f"{problem} of a run: it has more than {_MOST_VALUES} values")
    return value


def _too_large(value: Any) -> bool:
    """Whether a walk would take long: aliases (&, *) can repeat a value without end."""
    pending, visited = [value], 0
    while pending and visited <= _MOST_VALUES:
        visited += 1
        node = pending.pop()
        if isinstance(node, dict):
            pending += node.values()
        elif isinstance(node, list | tuple | set):
            pending += node
    return visited > _MOST_VALUES


def _impossible_value(value: Any, name: str = "") -> str | None:
    """A setting that no field can hold, whatever its kind, and what is wrong with it."""
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return f"{name}={_shown(value)}: has more than {_MOST_BITS} bits"
    if isinstance(value, str) and _HALF_CHARACTER.search(value):
        return f"{name}={_shown(value)}: holds half of a surrogate pair, which is no character"
    if isinstance(value, dict | list):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        found = (
            _impossible_value(entry, f"{name}.{key}" if name else str(key))
            for key, entry in entries
        )
        return next((problem for problem in found if problem), None)
    return None


def overlay(below: Settings, above: Settings) -> Settings:
    """Merge two nested mappings; `above` wins, lists are replaced whole."""
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = overlay(merged[key], value)
        else:
            merged[key] = value
    return merged


def _apply_override(settings: Settings, override: str) -> None:
    """Set one `section.field=value` in place."""
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise UserError(
            f"override {_shown(override)}: write section.field=value, e.g. model.num_layers=4"
        )
    value = _parse_yaml(text, f"override {_shown(override)}: the value is not YAML")
    if isinstance(value, str):  # YAML 1.1 reads 3e-4 as a text
        value = _as_number(value)
    for key in keys[:-1]:
        below = settings.get(key)
        settings[key] = dict(below) if isinstance(below, dict) else {}
        settings = settings[key]
    settings[keys[-1]] = value


def _as_number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _explain(problem: dict[str, Any]) -> str:
    """One pydantic problem as `section.field=value: what is wrong`."""
    location = [str(part) for part in problem["loc"]]
    field = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return f"unknown setting {field}{_nearest(location)}"
    message = problem["msg"].removeprefix("Value error, ")
    if isinstance(problem["input"], dict | BaseModel):
        return f"{field}: {message}" if field else message
    return f"{field}={_shown(problem['input'])}: {message}"


def _shown(value: object) -> str:
    """A value in an error, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write numbers of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _nearest(location: list[str]) -> str:
    """The known settings most like the unknown one, looking in its own section first."""
    section = _section_at(location[:-1])
    siblings = list(section.model_fields) if section else []
    close = difflib.get_close_matches(location[-1], siblings, n=3)
    prefix = ".".join(location[:-1])
    close = [f"{prefix}.{name}" if prefix else name for name in close]
    if not close:
        by_name = {name.rsplit(".", 1)[-1]: name for name in setting_names()}
        close = [by_name[n] for n in difflib.get_close_matches(location[-1], by_name, n=3)]
    if not close:
        return f"; known here: {', '.join(siblings)}"
    return f"; did you mean {' or '.join(close)}?"


def _section_at(location: list[str]) -> type[BaseModel] | None:
    """The section class at a path such as ["model", "rope_scaling"]."""
    section: type[BaseModel] = RunConfig
    for name in location:
        if name not in section.model_fields:
            return None
        annotation = section.model_fields[name].annotation
        candidates = [annotation, *get_args(annotation)]
        classes = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not classes:
            return None
        section = classes[0]
    return section


def setting_names() -> list[str]:
    """Every setting of a run, dotted, in order."""
    return [
        f"{section}.{field}"
        for section, info in RunConfig.model_fields.items()
        for field in info.annotation.model_fields  # type: ignore[union-attr]
    ]


def _yaml_problem(error: yaml.YAMLError) -> str:
    """What is wrong and where, on one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem}, line {mark.line + 1}, column {mark.column + 1}"
    return " ".join(str(error).split())


def _kind(value: object) -> str:
    return "text" if isinstance(value, str) else type(value).__name__
