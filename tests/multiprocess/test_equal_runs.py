"""Two and four real processes: the same run as one process with as many devices."""

import numpy as np
import pytest
from process_group import losses, train, write_run


@pytest.mark.parametrize(
    ("processes", "mesh"),
    [
        (2, {"fsdp": 8}),
        (2, {"data": 2, "tensor": 4}),
        pytest.param(4, {"data": 2, "fsdp": 4}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_several_processes_equal_one(processes, mesh, tmp_path):
    curves = {}
    for number in (1, processes):
        folder = tmp_path / str(number)
        write_run(folder, mesh=mesh, training={"micro_batch_size": 1}, checkpoint={"interval": 4})
        train(folder, number, "--stop-after", "6").succeed()
        train(folder, number).succeed()  # resumes from what all processes wrote
        curves[number] = losses(folder)
    assert list(curves[processes]) == list(range(1, 21))
    np.testing.assert_allclose(
        list(curves[processes].values()), list(curves[1].values()), rtol=1e-5
    )
