"""Every shape that a search proposes can be cut, loaded and paid for."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dongwu_jax.compress.candidates import CLOSEST, Limits, candidate_shapes, parse_budget, step
from dongwu_jax.compress.shapes import Shape, check_shape, parameter_count, resized, shape_of
from dongwu_jax.config import ModelConfig
from dongwu_jax.errors import UserError
from dongwu_jax.plan.parameters import parameter_table

LLAMA_13B = ModelConfig(
    hidden_size=5120, intermediate_size=13824, num_layers=40, num_heads=40, vocab_size=32000
)


@st.composite
def models(draw):
    kv_heads, group = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    head_dim = 2 * draw(st.integers(1, 64))
    return ModelConfig(
        vocab_size=draw(st.integers(10, 5000)),
        num_layers=draw(st.integers(1, 40)),
        num_heads=kv_heads * group,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        hidden_size=kv_heads * group * draw(st.integers(1, 128)),
        intermediate_size=draw(st.integers(16, 4096)),
        tie_word_embeddings=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
    )


@settings(max_examples=60, deadline=None)
@given(models(), st.floats(0.3, 0.99), st.sampled_from([1, 2, 3]), st.sampled_from([1, 2]))
def test_candidates_obey_every_rule(whole, share, tensor_parallel, fsdp):
    assume(whole.hidden_size % fsdp == 0)
    budget, had = int(share * parameter_count(whole)), shape_of(whole)
    try:
        shapes, limits = candidate_shapes(whole, budget, tensor_parallel, fsdp)
    except UserError as error:
        assert "no shape has 97% to 100%" in str(error)  # noqa: PT017
        return
    assert len(set(shapes)) == len(shapes)
    assert len({(s.num_layers, s.hidden_size, s.num_heads, s.num_kv_heads) for s in shapes}) == len(
        shapes
    )
    for shape in shapes:
        check_shape(shape, whole, tensor_parallel)
        parameters = parameter_count(resized(whole, shape))
        assert CLOSEST * budget <= parameters <= budget
        assert shape.hidden_size % fsdp == 0
        assert shape.num_layers * 100 >= had.num_layers * (100 - limits.depth)
        for name in ("hidden_size", "intermediate_size", "num_heads"):
            assert getattr(shape, name) * 100 >= getattr(had, name) * (100 - limits.width)
        wider = shape.intermediate_size + tensor_parallel * step(
            "intermediate_size", had.intermediate_size
        )
        if wider <= had.intermediate_size:  # the next one is too big: it is the widest
            changed = Shape(**vars(shape) | {"intermediate_size": wider})
            assert parameter_count(resized(whole, changed)) > budget


@settings(max_examples=20, deadline=None)
@given(models())
def test_parameters_are_those_of_the_modules(whole):
    assert parameter_count(whole) == parameter_table(whole).total


def test_shapes_of_a_13b():
    shapes, limits = candidate_shapes(LLAMA_13B, parse_budget("6.2B"))
    assert limits == Limits(width=40, depth=20)
    assert all(shape.intermediate_size % 512 == 0 for shape in shapes)
    assert {shape.hidden_size for shape in shapes if shape.num_heads == 32} == {
        *range(3072, 4353, 256)
    }
    shapes, _ = candidate_shapes(LLAMA_13B, parse_budget("6.8B"), tensor_parallel=8)
    assert {shape.num_heads for shape in shapes} == {24, 32, 40}


def test_what_is_too_small_for_the_limits_widens_them():
    shapes, limits = candidate_shapes(LLAMA_13B, parse_budget("2B"))
    assert (limits.width, limits.depth) == (60, 40)
    assert shapes


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("14B", "--search 14,000,000,000: the model has 13,015,864,320 parameters; give less"),
        ("0", "--search 0: the model has"),
        ("1M", "--search 1,000,000: no shape .* none is as small"),
        ("6.2T", "--search 6.2T: write a number of parameters"),
        ("many", "--search many: write a number of parameters"),
    ],
)
def test_budgets_that_cannot_be(budget, message):
    with pytest.raises(UserError, match=message):
        candidate_shapes(LLAMA_13B, parse_budget(budget))


@pytest.mark.parametrize(
    ("text", "number"),
    [("81M", 81_000_000), ("6.2b", 6_200_000_000), ("81,000,000", 81_000_000), ("512 k", 512_000)],
)
def test_budgets_as_people_write_them(text, number):
    assert parse_budget(text) == number
