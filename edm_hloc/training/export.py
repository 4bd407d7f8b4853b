"""Export of a trained network as a half-precision safetensors file with metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import write_whole
from edm_hloc.models.edm import EDM


def export_weights(model: EDM, path: Path, metadata: Mapping[str, str | int | float]) -> None:
    """Writes the network's weights, floating-point tensors in fp16.

    Args:
        model: the network.
        path: the file; it is replaced as a whole.
        metadata: of the file; values are converted to text.

    Raises:
        EdmHlocError: a weight is not finite in half precision, or the file cannot be written.
    """
    state = {}
    for name, value in model.state_dict().items():
        value = value.detach().cpu()
        if value.is_floating_point():
            value = value.half()
            if not torch.isfinite(value).all():
                raise EdmHlocError(f"weight {name} is not finite in half precision; not exported")
        state[name] = value.contiguous()
    # `save_file` would make a file that only its owner can read.
    write_whole(path, save(state, metadata={k: str(v) for k, v in metadata.items()}))
