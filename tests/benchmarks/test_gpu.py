"""The benchmark for a GPU: who takes part, and that contenders compute one and the same."""

from __future__ import annotations

import torch

from benchmarks import gpu
from benchmarks._peers import Ours


def test_jacobi_comes_to_the_sequential_inverse() -> None:
    torch.manual_seed(0)
    ours = Ours(9, 16)
    jacobi = gpu.Jacobi(9, 16)
    jacobi.module.load_state_dict(ours.module.state_dict())
    z = torch.randn(5, 9)
    with torch.no_grad():
        torch.testing.assert_close(jacobi.slow(z), ours.slow(z), rtol=1e-4, atol=1e-5)


def test_other_libraries_take_part_where_they_end_in_time() -> None:
    few, many = gpu.layers_for((6, 128, 256)), gpu.layers_for((784, 1024, 65536))
    assert many == [gpu.Jacobi]
    assert set(many) < set(few)
    assert gpu.Compiled not in gpu.layers_for((63, 512, 1))
