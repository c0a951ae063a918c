"""The page of all settings: up to date, complete, and with the bounds that are enforced."""

import re
from pathlib import Path

import pytest

from dongwu_jax.config import parse_config
from dongwu_jax.config.loading import setting_names
from dongwu_jax.config.reference import reference
from dongwu_jax.config.settings import Setting, sections
from dongwu_jax.errors import UserError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
SETTINGS = {setting.name: setting for section in sections() for setting in section.settings}

FREE_TEXT = ("text", "path", "list of sections")  # a blend may be the prefix of one dataset


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == reference(), (
        "write it again: python -m dongwu_jax.config.reference > docs/configuration.md"
    )


def test_the_page_has_every_setting_once_with_a_meaning():
    rows = re.findall(r"^\| `([\w.\[\]]+)` \| .+ \| .+ \| (.+) \|$", reference(), re.MULTILINE)
    assert [name for name, _ in rows] == list(SETTINGS)
    assert all(meaning.strip() for _, meaning in rows)
    assert set(setting_names()) <= set(SETTINGS)


def test_what_a_row_says():
    assert SETTINGS["model.num_layers"].values == ("int > 0 and <= 10000",)
    assert SETTINGS["logging.prometheus_port"].values == ("int >= 1 and <= 65535", "null")
    assert SETTINGS["schedule.type"].values == ("constant", "linear", "cosine", "wsd")
    assert SETTINGS["schedule.type"].default == "cosine"
    assert SETTINGS["schedule.decay"].values == ("duration", "null")
    assert SETTINGS["training.scan_layers"].values == ("true", "false")
    assert SETTINGS["optimizer.learning_rate"].default == "0.0003"
    assert SETTINGS["model.rope_scaling.factor"].default is None
    assert SETTINGS["data.blend"].values == ("list of sections",)
    assert SETTINGS["data.blend[].weight"].values == ("float > 0", "null")
    assert SETTINGS["sharding.rules"].values == ("mapping of text to list of text, text or null",)


def just_outside(setting: Setting) -> list[float]:
    """Numbers that the bounds of a setting exclude."""
    found = []
    for sign, number in re.findall(r"([<>]=?) ([\d.e-]+)", " ".join(setting.values)):
        bound = float(number) if "." in number or "e" in number else int(number)
        step = {">": 0, "<": 0, ">=": -1, "<=": 1}[sign]
        found.append(bound + step)
    return found


@pytest.mark.parametrize("name", setting_names())
def test_bounds_and_choices_are_enforced(name: str):
    setting = SETTINGS[name]
    section, field = name.split(".")
    wrong: list[object] = [*just_outside(setting)]
    if setting.values[0] not in FREE_TEXT or name == "data.format":
        wrong.append("neither a choice nor a number")
    for value in wrong:
        with pytest.raises(UserError, match=re.escape(f"{name}=")):
            parse_config({section: {field: value}}, source="test")


def test_a_setting_without_bounds_takes_what_is_below_zero():
    parse_config({"mesh": {"data": -1}}, source="test")
    assert just_outside(SETTINGS["mesh.data"]) == []
