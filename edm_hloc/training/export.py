"""Write a trained network as a half-precision safetensors file with its provenance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.models.edm import EDM


def export_weights(model: EDM, path: Path, metadata: Mapping[str, str | int | float]) -> None:
    """Save the network's state, floating-point entries in fp16; the file appears whole or not.

    Raises:
        EdmHlocError: if a weight is not finite in half precision.
    """
    state = {}
    for name, value in model.state_dict().items():
        value = value.detach().cpu()
        if value.is_floating_point():
            value = value.half()
            if not torch.isfinite(value).all():
                raise EdmHlocError(f"weight {name} is not finite in half precision; not exported")
        state[name] = value.contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    # Not save_file: that makes files which only their owner can read.
    temporary.write_bytes(save(state, metadata={k: str(v) for k, v in metadata.items()}))
    temporary.replace(path)
