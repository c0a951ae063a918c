"""XLA's options: known to the installed compiler, and only those meant for its version."""

import jax
import jax.numpy as jnp
import pytest

from dongwu_jax.training.compilation import GPU_OPTIONS, compiler_options


@pytest.mark.parametrize("option", GPU_OPTIONS, ids=lambda option: option.name)
def test_the_installed_compiler_knows_the_option(option):
    chosen = compiler_options("gpu")
    if option.name not in chosen:
        pytest.skip("not meant for this version")
    program = jax.jit(lambda x: x + 1, compiler_options={option.name: option.value})
    assert program(jnp.ones(())) == 2


def test_an_unknown_option_would_be_noticed():
    with pytest.raises(Exception, match="xla_gpu_no_such_option"):
        jax.jit(lambda x: x + 1, compiler_options={"xla_gpu_no_such_option": True})(1.0)


def test_options_are_chosen_by_version_and_platform():
    assert compiler_options("cpu") == {}
    old, new = compiler_options("gpu", (0, 10)), compiler_options("gpu", (0, 11))
    assert "xla_gpu_enable_dynamic_slice_fusion" not in old
    assert new == old | {"xla_gpu_enable_dynamic_slice_fusion": False}
