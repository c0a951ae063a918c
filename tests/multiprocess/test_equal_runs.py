"""Two and four real processes: the same run as one process with as many devices."""

import math

import numpy as np
import pytest
from process_group import losses, train, write_run


@pytest.mark.parametrize(
    ("processes", "mesh", "sharding"),
    [
        (2, {"fsdp": 8}, {}),
        (2, {"data": 2, "tensor": 4}, {}),
        pytest.param(2, {"pipe": 2}, {}, marks=pytest.mark.slow),
        pytest.param(2, {"context": 2}, {"context_attention": "ring"}, marks=pytest.mark.slow),
        pytest.param(4, {"data": 2, "fsdp": 4}, {}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_several_processes_equal_one(processes, mesh, sharding, tmp_path):
    curves, devices = {}, math.prod(mesh.values())
    for number in (1, processes):
        folder = tmp_path / str(number)
        write_run(
            folder,
            mesh=mesh,
            sharding=sharding,
            training={"micro_batch_size": 1},
            checkpoint={"interval": 4},
        )
        train(folder, number, "--stop-after", "6", devices=devices).succeed()
        train(folder, number, devices=devices).succeed()  # resumes from what all processes wrote
        curves[number] = losses(folder)
    assert list(curves[processes]) == list(range(1, 21))
    np.testing.assert_allclose(
        list(curves[processes].values()), list(curves[1].values()), rtol=1e-5
    )
