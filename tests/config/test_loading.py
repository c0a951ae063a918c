"""Configuration: files over bases, overrides over files, errors that name the fix."""

from pathlib import Path

import pytest

from dongwu_jax.config import RunConfig, dump_config, load_config, parse_config
from dongwu_jax.config.help import config_help
from dongwu_jax.config.loading import setting_names
from dongwu_jax.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_base_is_overlaid_by_file_and_file_by_overrides(tmp_path):
    write(tmp_path / "base.yaml", "model: {num_layers: 2, num_heads: 8}\ntraining: {seed: 1}\n")
    path = write(tmp_path / "run.yaml", "base: base.yaml\nmodel: {num_layers: 3}\n")
    config = load_config(path, ["training.seed=7", "optimizer.learning_rate=3e-4"])
    assert (config.model.num_layers, config.model.num_heads) == (3, 8)
    assert (config.training.seed, config.optimizer.learning_rate) == (7, 3e-4)


def test_override_of_a_list_and_of_a_rule(tmp_path):
    path = write(tmp_path / "run.yaml", "data: {blend: a}\n")
    config = load_config(
        path, ["data.blend=[{prefix: x, weight: 0.3}, y]", "sharding.rules.mlp=[tensor]"]
    )
    assert [(str(e.prefix), e.weight) for e in config.data.blend] == [("x", 0.3), ("y", None)]
    assert config.sharding.rules == {"mlp": ["tensor"]}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_load_and_round_trip(path, tmp_path):
    config = load_config(path)
    assert load_config(write(tmp_path / "dump.yaml", dump_config(config))) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modle": {}}, "unknown setting modle; did you mean model?"),
        ({"model": {"num_layer": 3}}, "did you mean model.num_layers?"),
        ({"optimizer": {"num_layers": 3}}, "did you mean model.num_layers"),
        ({"model": {"rope_scaling": {"factr": 2.0}}}, "model.rope_scaling.factor"),
        ({"model": {"num_layers": "many"}}, "model.num_layers='many'"),
        ({"model": {"rope_theta": float("inf")}}, "model.rope_theta=inf"),
        ({"model": {"rope_scaling": {"factor": float("inf")}}}, "model.rope_scaling.factor=inf"),
        ({"model": {"num_heads": 7}}, "hidden_size=4096 is not a multiple of num_heads=7"),
        ({"model": {"num_kv_heads": 5}}, "num_heads=32 is not a multiple of num_kv_heads=5"),
        ({"model": {"padded_vocab_size": 9}}, "padded_vocab_size=9 is smaller"),
        ({"data": {"sequence_length": 9000}}, "data.sequence_length=9000 is longer than"),
        ({"training": {"duration": "3 weeks"}}, "is not a duration"),
        ({"schedule": {"min_learning_rate": 1.0}}, "schedule.min_learning_rate=1.0 is above"),
        ({"training": {"loss_chunk_tokens": 1000}}, "not a multiple of training.loss_chunk_tokens"),
    ],
)
def test_bad_settings_name_the_field_and_the_fix(settings, message):
    with pytest.raises(UserError, match="run.yaml") as error:
        parse_config(settings, "run.yaml")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "must hold sections"),
        ("data: {}\ndata: {}\n", "'data' stands twice"),
        ("model: [", "is not YAML"),
        ("base: gone.yaml\n", "gone.yaml: cannot be read"),
        ("base: run.yaml\n", "goes in a circle"),
        ("model: !!python/object/apply:os.system ['true']\n", "is not YAML"),
    ],
)
def test_bad_files(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        load_config(write(tmp_path / "run.yaml", text))


@pytest.mark.parametrize(
    ("value", "message"),
    [(1 << 80, "has more than 64 bits"), ("a\ud800", "half of a surrogate pair")],
)
def test_values_that_no_field_can_hold(value, message):
    with pytest.raises(UserError, match=f"run.yaml: logging.directory=.*{message}"):
        parse_config({"logging": {"directory": value}}, source="run.yaml")


@pytest.mark.parametrize("override", ["model.num_layers", "=3", "model..x=1", "model.x=[1"])
def test_bad_overrides(tmp_path, override):
    with pytest.raises(UserError, match="override"):
        load_config(write(tmp_path / "run.yaml", ""), [override])


def test_help_lists_every_setting_with_its_description():
    text = config_help()
    for name in setting_names():
        assert f"  {name}  " in text
        section, field = name.split(".")
        annotation = RunConfig.model_fields[section].annotation
        description = annotation.model_fields[field].description
        assert description
        assert description in text
