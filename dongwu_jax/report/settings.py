"""Settings of the starts of a run, and what was changed between them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from dongwu_jax.config.dotted_names import by_dotted_name
from dongwu_jax.report.sessions import Session


@dataclass(frozen=True)
class Change:
    """One setting that a start has otherwise than the start before it."""

    setting: str
    before: str
    after: str


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """Settings that differ, in the order of `after`; one that is not there is "absent"."""
    was, is_now = by_dotted_name(before), by_dotted_name(after)
    return [
        Change(name, _text(was, name), _text(is_now, name))
        for name in {**is_now, **was}
        if was.get(name, _ABSENT) != is_now.get(name, _ABSENT)
    ]


def changes_between(sessions: Sequence[Session]) -> list[list[Change]]:
    """What each start changed; nothing for the first."""
    return [
        changes(before.config, session.config) if before and before.config else []
        for before, session in zip([None, *sessions], sessions, strict=False)
    ]


def as_yaml(settings: dict[str, Any]) -> str:
    """The whole configuration."""
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


_ABSENT = object()


def _text(flat: dict[str, Any], name: str) -> str:
    if name not in flat:
        return "absent"
    value = flat[name]
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
