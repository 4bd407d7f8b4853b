"""What the matchers share when they load a network: devices, missing libraries, checksums."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from edm_hloc.base.errors import EdmHlocError


def default_device() -> str:
    """The fastest kind of device on this computer."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_device(device: str) -> None:
    """Raises EdmHlocError if there is no such device on this computer."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise EdmHlocError(
            f"There is no device {device!r} here ({reason}): leave --device out for the fastest "
            "there is, or give cpu."
        ) from None


def state_sha256(model: nn.Module) -> str:
    """SHA-256 over a network's parameters and buffers, for the provenance of loaded weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
