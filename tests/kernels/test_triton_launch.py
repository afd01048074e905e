"""Launches by handle: a later launch must never take the binary of arguments unlike its own."""

from __future__ import annotations

import pytest
import torch

from streamserve_kernels.reference import norms as reference
from tests.support.kernel_cases import DEVICE, random, relative_error, triton_area

norms = triton_area("norms")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_aligned_and_unaligned_arguments_take_turns(dtype: torch.dtype) -> None:
    for _ in range(3):
        for width, offset in ((64, 0), (33, 0), (64, 1), (33, 1), (16, 3)):
            memory, weight = random(7 * width + offset, dtype=dtype), random(width, dtype=dtype)
            x = memory[offset:].view(7, width)
            actual = norms.rms_norm(x, weight, 1e-6)
            assert relative_error(actual, reference.rms_norm(x.float(), weight, 1e-6)) < 1e-2


@pytest.mark.gpu
def test_numbers_of_every_kind_take_turns() -> None:
    for rows in (1, 16, 17, 1, 512, 513, 16):
        x, weight = random(rows, 48), torch.ones(48, device=DEVICE)
        assert relative_error(norms.rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6)) < 1e-4
