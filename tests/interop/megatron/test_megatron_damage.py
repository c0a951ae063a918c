"""Damaged, incomplete and unsupported checkpoints: one clear message each."""

import shutil
from argparse import Namespace

import numpy as np
import pytest
import torch
from megatron_models import change_rank, random_weights, small_config, write_checkpoint

from dongwu_jax.errors import UserError
from dongwu_jax.interop.megatron.export import MegatronLayout
from dongwu_jax.interop.megatron.folders import find_iteration_folder, is_megatron_checkpoint
from dongwu_jax.interop.megatron.source import MegatronSource

_FIRST, _LAST = "mp_rank_00_000", "mp_rank_01_001"


@pytest.fixture
def checkpoint(tmp_path):
    """Two ranks, two stages, grouped queries, tied."""
    config = small_config(num_layers=2, num_kv_heads=8, tie_word_embeddings=True)
    layout = MegatronLayout("mcore", 2, 2)
    return write_checkpoint(tmp_path / "model", config, random_weights(config), layout, iteration=5)


def _file(checkpoint, rank):
    return checkpoint / "iter_0000005" / rank / "model_optim_rng.pt"


def _change(checkpoint, rank, change):
    change_rank(_file(checkpoint, rank), change)


def _change_all(checkpoint, change):
    for file in checkpoint.glob("*/mp_rank_*"):
        _change(checkpoint, file.name, change)


def _refused(path, message):
    with pytest.raises(UserError, match=message) as error:
        MegatronSource(path)
    assert "\n" not in str(error.value)


def test_the_untouched_checkpoint_is_read(checkpoint):
    assert MegatronSource(checkpoint).names()
    assert MegatronSource(checkpoint / "iter_0000005").iteration == 5
    assert is_megatron_checkpoint(checkpoint)
    assert is_megatron_checkpoint(checkpoint / "iter_0000005")
    assert not is_megatron_checkpoint(checkpoint / "elsewhere")


@pytest.mark.parametrize("content", ["latest", "", "-5", "5.0", "../iter_0000005", "٥"])
def test_tracker_with_nonsense(checkpoint, content):
    (checkpoint / "latest_checkpointed_iteration.txt").write_text(content, encoding="utf-8")
    _refused(checkpoint, "latest_checkpointed_iteration.txt: says .* or 'release'")


def test_tracker_that_is_binary(checkpoint):
    (checkpoint / "latest_checkpointed_iteration.txt").write_bytes(b"\xff\xfe5")
    _refused(checkpoint, "cannot be read as text")


def test_tracker_of_absurd_size(checkpoint):
    with (checkpoint / "latest_checkpointed_iteration.txt").open("wb") as file:
        file.truncate(64 << 30)  # takes no space
    _refused(checkpoint, "latest_checkpointed_iteration.txt: has more than 1024 bytes")


def test_tracker_that_names_a_missing_folder(checkpoint):
    (checkpoint / "latest_checkpointed_iteration.txt").write_text("6\n")
    _refused(checkpoint, "names 6, but there is no folder iter_0000006")


def test_tracker_with_a_line_end(checkpoint):
    (checkpoint / "latest_checkpointed_iteration.txt").write_text(" 5\n")
    assert find_iteration_folder(checkpoint).iteration == 5


def test_missing_tracker(checkpoint):
    (checkpoint / "latest_checkpointed_iteration.txt").unlink()
    _refused(checkpoint, "give the folder itself, e.g. .*iter_0000005")


def test_empty_folder(tmp_path):
    _refused(tmp_path, "holds no Megatron checkpoint")


@pytest.mark.parametrize("rank", [_FIRST, "mp_rank_01_000", "mp_rank_00_001", _LAST])
def test_missing_rank(checkpoint, rank):
    shutil.rmtree(checkpoint / "iter_0000005" / rank)
    _refused(checkpoint, f"{rank} missing")


def test_rank_with_an_absurd_number(checkpoint):
    (checkpoint / "iter_0000005/mp_rank_99999999_99999999").mkdir()
    _refused(checkpoint, "mp_rank_02_000, .*mp_rank_17_000 and 9999999999999979 more missing")


def test_missing_file_of_a_rank(checkpoint):
    _file(checkpoint, _LAST).unlink()
    _refused(checkpoint, f"{_LAST}: model_optim_rng.pt is missing")


def test_missing_stage(checkpoint):
    for rank in (0, 1):
        shutil.rmtree(checkpoint / f"iter_0000005/mp_rank_0{rank}_001")
    _refused(checkpoint, "args.pipeline_model_parallel_size=2, but .* are those of 1")


def test_missing_half(checkpoint):
    for stage in (0, 1):
        shutil.rmtree(checkpoint / f"iter_0000005/mp_rank_01_00{stage}")
    _refused(checkpoint, "args.tensor_model_parallel_size=2, but .* are those of 1")


def test_folders_of_two_layouts(checkpoint):
    shutil.copytree(checkpoint / f"iter_0000005/{_FIRST}", checkpoint / "iter_0000005/mp_rank_02")
    _refused(checkpoint, "of two different layouts")


@pytest.mark.parametrize("name", ["mp_rank_00_000_000", "mp_rank_00_000_001"])
def test_experts_by_folder_name(checkpoint, name):
    shutil.copytree(checkpoint / f"iter_0000005/{_FIRST}", checkpoint / "iter_0000005" / name)
    _refused(checkpoint, "experts")


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_truncated_file(checkpoint, keep):
    file = _file(checkpoint, _LAST)
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    _refused(checkpoint, str(file))


@pytest.mark.parametrize("contents", [[1, 2], {"model": {}}, {"args": Namespace()}])
def test_other_torch_files(checkpoint, contents):
    torch.save(contents, _file(checkpoint, _FIRST))
    _refused(checkpoint, str(_file(checkpoint, _FIRST)))


def test_wrong_shape(checkpoint):
    name = "decoder.layers.0.mlp.linear_fc1.weight"
    _change(checkpoint, _LAST, lambda c: c["model"].update({name: torch.zeros(7, 32)}))
    _refused(checkpoint, f"{_LAST}.*{name} has shape \\(7, 32\\).* ask for \\(40, 32\\)")


def test_wrong_dtype(checkpoint):
    name = "decoder.final_layernorm.weight"
    _change(
        checkpoint,
        "mp_rank_00_001",
        lambda c: c["model"].update({name: torch.zeros(32, dtype=torch.int8)}),
    )
    _refused(checkpoint, f"{name} is stored as int8")


@pytest.mark.parametrize("rank", [_FIRST, "mp_rank_01_000"])
def test_tensor_missing_in_one_rank(checkpoint, rank):
    name = "decoder.layers.0.mlp.linear_fc1.weight"
    _change(checkpoint, rank, lambda c: c["model"].pop(name))
    _refused(checkpoint, f"holds model/{name}, but .*{rank}.* lacks it")


def test_tensor_missing_in_all_ranks(checkpoint):
    _change_all(checkpoint, lambda c: c["model"].pop("decoder.final_layernorm.weight", None))
    _refused(checkpoint, "no file holds final_norm")


def test_unknown_tensor(checkpoint):
    _change_all(checkpoint, lambda c: c["model"].update({"adapter.weight": torch.zeros(3)}))
    _refused(checkpoint, "model/adapter.weight has no place in a Llama")


def test_layers_with_a_gap(checkpoint):
    def renumber(contents):
        contents["model"] = {
            name.replace("layers.0.", "layers.3."): tensor
            for name, tensor in contents["model"].items()
        }

    _change_all(checkpoint, renumber)
    _refused(checkpoint, "holds layers 3; a stage's layers must count from 0")


def test_number_of_layers_other_than_said(checkpoint):
    _change_all(checkpoint, lambda c: setattr(c["args"], "num_layers", 3))
    _refused(checkpoint, "args.num_layers=3, but the 2 pipeline stages hold 2 layers")


def test_rank_of_another_iteration(checkpoint):
    _change(checkpoint, _LAST, lambda c: c.update(iteration=4))
    _refused(checkpoint, f"{_LAST}.*was saved at iteration 4")


def test_rank_with_a_virtual_pipeline(checkpoint):
    _change(checkpoint, _LAST, lambda c: c.update(model0=c["model"], model1=c.pop("model")))
    _refused(checkpoint, "holds 2 chunks of layers")


def test_copy_of_the_embedding_that_differs(checkpoint):
    _change(checkpoint, _LAST, lambda c: c["model"]["output_layer.weight"].add_(1))
    source = MegatronSource(checkpoint)
    with pytest.raises(UserError, match="output_layer.weight differs from .*word_embeddings"):
        source.read("embed_tokens")
    assert source.read("final_norm").shape == (32,)


def test_copy_of_the_embedding_with_nan(checkpoint):
    def spoil(name):
        return lambda c: c["model"][name][0].fill_(float("nan"))

    _change(checkpoint, _FIRST, spoil("embedding.word_embeddings.weight"))
    _change(checkpoint, "mp_rank_00_001", spoil("output_layer.weight"))
    assert np.isnan(MegatronSource(checkpoint).read("embed_tokens")).any()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", 64),
        ("ffn_hidden_size", 8),
        ("num_attention_heads", 4),
        ("num_query_groups", 4),
        ("kv_channels", 4),
        ("rotary_base", 500000),
        ("norm_epsilon", 1e-6),
        ("layernorm_epsilon", 1e-6),
        ("rotary_seq_len_interpolation_factor", 8),
        ("swiglu", False),
    ],
)
def test_rank_with_other_arguments(checkpoint, field, value):
    _change(checkpoint, _LAST, lambda c: setattr(c["args"], field, value))
    _refused(checkpoint, f"{_LAST}.*args.{field}={value}")


def test_ranks_that_store_one_tensor_in_two_dtypes(checkpoint):
    name = "decoder.layers.0.mlp.linear_fc1.weight"
    _change(
        checkpoint,
        "mp_rank_01_000",
        lambda c: c["model"].update({name: c["model"][name].bfloat16()}),
    )
    message = f"{_FIRST}.*{name} is stored as float32, but as bfloat16 in .*mp_rank_01_000"
    _refused(checkpoint, message)


def test_legacy_copy_of_the_embedding_that_differs(tmp_path):
    config = small_config(num_layers=2, tie_word_embeddings=True)
    layout = MegatronLayout("legacy", 1, 2)
    folder = write_checkpoint(tmp_path / "m", config, random_weights(config), layout, iteration=5)
    _change(
        folder,
        "mp_rank_00_001",
        lambda c: c["model"]["word_embeddings_for_head"]["weight"].add_(1),
    )
    with pytest.raises(UserError, match="word_embeddings_for_head/weight differs"):
        MegatronSource(folder).read("embed_tokens")


def test_grouped_queries_cannot_be_old(tmp_path):
    config = small_config(num_layers=1, num_kv_heads=8)
    folder = write_checkpoint(
        tmp_path / "m", config, random_weights(config), MegatronLayout("legacy"), iteration=5
    )
    _change(folder, "mp_rank_00", lambda c: c.update(checkpoint_version=0))
    _refused(folder, "num_query_groups=8.*checkpoint_version=0 cannot have")


def test_an_old_converters_unpadded_head(tmp_path):
    """The embedding is padded and the head is not: the rows that both have are kept."""
    config = small_config(num_layers=1)
    weights = random_weights(config)
    folder = write_checkpoint(
        tmp_path / "m", config, weights, MegatronLayout("legacy", 2), 56, iteration=5
    )
    for rank in (0, 1):
        half = torch.from_numpy(np.ascontiguousarray(weights["lm_head"].T[25 * rank :][:25]))
        _change(
            folder,
            f"mp_rank_0{rank}",
            lambda c, half=half: c["model"]["language_model"]["output_layer"].update(weight=half),
        )
    source = MegatronSource(folder)
    assert source.notes[-1] == "the embedding has 56 rows and the head 50: the first 50 are kept"
    np.testing.assert_array_equal(source.read("lm_head"), weights["lm_head"])
    np.testing.assert_array_equal(source.read("embed_tokens"), weights["embed_tokens"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_experts", 8),
        ("multi_latent_attention", True),
        ("position_embedding_type", "yarn"),
        ("position_embedding_type", "none"),
        ("rotary_percent", 0.5),
        ("use_rope_scaling", True),
        ("normalization", "LayerNorm"),
        ("swiglu", False),
        ("add_bias_linear", True),
        ("apply_layernorm_1p", True),
        ("layernorm_zero_centered_gamma", True),
        ("qk_layernorm", True),
        ("window_size", (128, 0)),
        ("mtp_num_layers", 1),
        ("heterogeneous_layers_config_path", "layers.json"),
        ("hidden_size", None),
        ("hidden_size", "32"),
        ("num_attention_heads", -4),
        ("norm_epsilon", 1e-6),
        ("norm_epsilon", []),
        ("kv_channels", 3),
        ("rotary_base", "ten thousand"),
        ("rotary_seq_len_interpolation_factor", 0),
        ("padded_vocab_size", 1234),
        ("untie_embeddings_and_output_weights", None),
    ],
)
def test_arguments_of_another_model(checkpoint, field, value):
    _change_all(checkpoint, lambda c: setattr(c["args"], field, value))
    if value is None and field.startswith("untie"):  # not said: what the head holds decides
        assert not MegatronSource(checkpoint).config.tie_word_embeddings
        return
    with pytest.raises(UserError, match=field.replace("kv_channels", "head_dim")) as error:
        MegatronSource(checkpoint)
    assert "model_optim_rng.pt" in str(error.value)


def test_experts_by_their_arguments_come_before_their_names(checkpoint):
    def make_experts(contents):
        contents["args"].num_experts = 4
        contents["model"]["decoder.layers.0.mlp.router.weight"] = torch.zeros(4, 32)

    _change_all(checkpoint, make_experts)
    _refused(checkpoint, "args.num_experts=4: mixtures of experts are unsupported")
