"""`training.deterministic`: on a GPU, too, a run repeats bit for bit."""

import jax
import numpy as np
import pytest
from runs import run_config

from dongwu_jax.training.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a CUDA device"),
]


def test_a_deterministic_run_repeats_bit_for_bit(tmp_path):
    ends = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        config = run_config(
            tmp_path / name,
            model={"hidden_size": 256, "intermediate_size": 512},
            precision={"compute_dtype": "bfloat16"},
            training={"deterministic": True, "compilation_cache": False},
        )
        ends.append(jax.device_get(Trainer(config).run()))
    jax.tree.map(np.testing.assert_array_equal, *ends)
