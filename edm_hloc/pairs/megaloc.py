"""Global descriptors of MegaLoc (Berton and Masone, 2025), code and weights downloaded on demand.

The code comes from torch.hub at one commit, after it has asked in the terminal; the weights are one
file, known by its SHA-256. A change of either upstream changes nothing here.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.base.progress import track
from edm_hloc.images.load import load_photo
from edm_hloc.models.registry import cache_directory
from edm_hloc.models.weights import download, file_sha256
from edm_hloc.pairs.descriptors import RetrievalImages, new_descriptors

_REPOSITORY = "gmberton/MegaLoc"
_COMMIT = "1af071c68fc3ab6c6018c5c868391763516e50f7"  # the code that was looked at runs, no other
_ENTRY = "MegaLoc"  # without weights: "get_trained_model" takes those of the day
_WEIGHTS = (
    "https://huggingface.co/gberton/MegaLoc/resolve/7cb9f7970d366fdf059963d04d372e503e8e9df9/"
    "model.safetensors"
)
MEGALOC_SHA256 = "d4f9f2bcb60018f91eb6a8e061ed054fd55654e10c2569cf13841ea986ffb4f8"
"""SHA-256 of MegaLoc's weights."""

_SIZE = 322  # px, both sides of the network's input
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation of the channels


def megaloc_descriptors(
    images: RetrievalImages, out: Path, device: torch.device, made_from: str = ""
) -> dict[str, str]:
    """Writes MegaLoc's descriptors (8,448 numbers) of all images.

    Code and weights (0.9 GB) are downloaded at the first call; torch.hub asks in the terminal
    whether this is wanted.

    Args:
        images: queries and database.
        out: H5 file to write, in hloc's format.
        device: of the network.
        made_from: fingerprint of all inputs, with which photos that are done are kept when the
            process is killed, see `new_descriptors`.

    Returns:
        The images that were skipped because they cannot be read, with the reason.

    Raises:
        EdmHlocError: the network cannot be loaded, or the file cannot be written.
    """
    model = _load_network().eval().to(device)
    mean, std = (torch.tensor(v)[:, None, None] for v in _IMAGENET)
    skipped: dict[str, str] = {}
    provenance = {"retrieval": "megaloc", "code": _COMMIT, "weights": MEGALOC_SHA256}
    with (
        new_descriptors(out, images.names, provenance, made_from) as kept,
        torch.inference_mode(),
    ):
        todo = [name for name in images.names if name not in kept]
        for name in track(todo, "Global descriptors", "photo"):
            try:
                image = load_photo(images.root / name, resize_max=None, grayscale=False, divisor=1)
            except ImageError as error:
                skipped[name] = str(error)
                continue
            square = torch.nn.functional.interpolate(
                ((image.tensor - mean) / std)[None], (_SIZE, _SIZE), mode="bilinear", antialias=True
            )
            kept.put(name, model(square.to(device))[0].float().cpu().numpy())
            kept.commit()
    return skipped


def _load_network() -> torch.nn.Module:
    """The network with its weights. Raises EdmHlocError if they cannot be had."""
    instead = "take --retrieval sift, or a file of descriptors made elsewhere."
    try:
        # Whether a fork has the commit does not matter: its hash stands for its content.
        model: torch.nn.Module = torch.hub.load(
            f"{_REPOSITORY}:{_COMMIT}", _ENTRY, trust_repo="check", skip_validation=True
        )
    except EOFError as error:  # there is nobody to answer
        raise EdmHlocError(
            f"MegaLoc is code from github.com/{_REPOSITORY} that would run here, and torch.hub "
            "asks for consent first: run the command once in a terminal and answer y, or "
            f"{instead}"
        ) from error
    except Exception as error:  # anything from no network to a missing module
        raise EdmHlocError(
            f"MegaLoc cannot be loaded from github.com/{_REPOSITORY} ({error}). Without its code "
            f"{instead}"
        ) from error
    path = cache_directory() / "megaloc.safetensors"
    if not path.is_file() and (problems := download([_WEIGHTS], path, MEGALOC_SHA256)):
        raise EdmHlocError(
            f"Could not download the weights of MegaLoc: {problems}. On a computer with network, "
            f"download the file and put it at {path}, or {instead}"
        )
    if file_sha256(path) != MEGALOC_SHA256:
        raise EdmHlocError(
            f"{path} is not the file of MegaLoc's weights: its SHA-256 is another one. Delete it, "
            "and the same command downloads it again."
        )
    try:
        model.load_state_dict(load_file(path))
    except Exception as error:  # safetensors and torch raise their own
        raise EdmHlocError(f"Cannot load MegaLoc's weights {path}: {error}.") from error
    return model
