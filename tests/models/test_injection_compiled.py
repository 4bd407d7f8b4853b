"""The compiled injection of a coarser map gives what PyTorch gives."""

from __future__ import annotations

import pytest
import torch

from edm_hloc.models import injection_compiled
from edm_hloc.models.edm import inject_gated


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 5, 7), (2, 1, 3), (1, 4, 1)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_it_is_that_of_pytorch(
    batch: int, height: int, width: int, memory_format: torch.memory_format
) -> None:
    generator = torch.Generator().manual_seed(1)
    finer = torch.randn(batch, 24, 2 * height, 2 * width, generator=generator)
    gate, coarser = torch.randn(2, batch, 24, height, width, generator=generator)
    maps = [m.contiguous(memory_format=memory_format) for m in (finer, gate, coarser)]
    found = injection_compiled.inject_gated(*maps)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, inject_gated(*maps), rtol=1e-6, atol=1e-6)
