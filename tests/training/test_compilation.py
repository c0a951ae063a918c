"""XLA's options: known to the installed compiler, and only those meant for its version."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from dongwu_jax.training.compilation import (
    DETERMINISTIC,
    GPU_OPTIONS,
    compiler_options,
    keep_compiled_programs,
)


@pytest.mark.parametrize("option", GPU_OPTIONS, ids=lambda option: option.name)
def test_the_installed_compiler_knows_the_option(option):
    chosen = compiler_options("gpu", False)
    if option.name not in chosen:
        pytest.skip("not meant for this version")
    program = jax.jit(lambda x: x + 1, compiler_options={option.name: option.value})
    assert program(jnp.ones(())) == 2


def test_deterministic_programs_are_asked_for_only_when_wanted():
    plain, exact = (
        compiler_options("gpu", False, deterministic=wanted) for wanted in (False, True)
    )
    assert exact == plain | DETERMINISTIC
    assert compiler_options("cpu", False, deterministic=True) == {}
    program = jax.jit(lambda x: x + 1, compiler_options=DETERMINISTIC)
    assert program(jnp.ones(())) == 2  # the compiler knows it


def test_an_unknown_option_would_be_noticed():
    with pytest.raises(Exception, match="xla_gpu_no_such_option"):
        jax.jit(lambda x: x + 1, compiler_options={"xla_gpu_no_such_option": True})(1.0)


def test_options_are_chosen_by_version_and_platform():
    assert compiler_options("cpu", False) == {}
    old, new = compiler_options("gpu", False, (0, 10)), compiler_options("gpu", False, (0, 11))
    assert "xla_gpu_enable_dynamic_slice_fusion" not in old
    assert new == old | {"xla_gpu_enable_dynamic_slice_fusion": False}


@pytest.mark.parametrize(
    ("backend", "named", "kept"),
    [("gpu", None, "run/compiled"), ("gpu", "mine", "mine"), ("cpu", None, None)],
)
def test_where_compiled_programs_are_kept(backend, named, kept, tmp_path, monkeypatch):
    option = "jax_compilation_cache_dir"
    before = jax.config.values[option]
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.chdir(tmp_path)
    try:
        jax.config.update(option, named)
        keep_compiled_programs(Path("run/compiled"))
        found = jax.config.values[option]
        assert found == (str(tmp_path / kept) if kept == "run/compiled" else kept)
    finally:
        jax.config.update(option, before)


def test_what_puts_work_off_is_off_where_there_is_nothing_to_hide():
    option = "xla_gpu_enable_latency_hiding_scheduler"
    assert option in compiler_options("gpu", False)
    assert option not in compiler_options("gpu", True)
