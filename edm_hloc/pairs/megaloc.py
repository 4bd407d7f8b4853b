"""Global descriptors of MegaLoc (Berton and Masone, 2025), which comes from torch.hub."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.base.progress import track
from edm_hloc.images.load import load_image
from edm_hloc.pairs.descriptors import DescriptorWriter, RetrievalImages

logger = logging.getLogger(__name__)

_REPOSITORY, _ENTRY = "gmberton/MegaLoc", "get_trained_model"
_COMMIT = "1af071c68fc3ab6c6018c5c868391763516e50f7"  # the code that was looked at runs, no other
_SIZE = 322  # px, both sides of the network's input
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation of the channels


def megaloc_descriptors(images: RetrievalImages, out: Path, device: torch.device) -> dict[str, str]:
    """Writes MegaLoc's descriptors (8,448 numbers) of all images.

    torch.hub downloads the code of one commit and the weights at the first call, and asks in the
    terminal whether this is wanted.

    Args:
        images: queries and database.
        out: H5 file to write, in hloc's format.
        device: of the network.

    Returns:
        The images that were skipped because they cannot be read, with the reason.

    Raises:
        EdmHlocError: the network cannot be loaded, or the file cannot be written.
    """
    try:
        # Whether a fork has the commit does not matter: its hash stands for its content.
        model = torch.hub.load(
            f"{_REPOSITORY}:{_COMMIT}", _ENTRY, trust_repo="check", skip_validation=True
        )
    except EOFError as error:  # there is nobody to answer
        raise EdmHlocError(
            f"MegaLoc is code from github.com/{_REPOSITORY} that would run here, and torch.hub "
            "asks for consent first: run the command once in a terminal and answer y, or take "
            "--retrieval sift, or a file of descriptors made elsewhere."
        ) from error
    except Exception as error:  # anything from no network to a missing module
        raise EdmHlocError(
            f"MegaLoc cannot be loaded from github.com/{_REPOSITORY} ({error}). Without "
            "network take --retrieval sift, or a file of descriptors made elsewhere."
        ) from error
    model = model.eval().to(device)
    mean, std = (torch.tensor(v)[:, None, None] for v in _IMAGENET)
    skipped: dict[str, str] = {}
    with DescriptorWriter(out, {"retrieval": "megaloc"}) as writer, torch.inference_mode():
        for name in track(images.names, "Global descriptors", "photo"):
            try:
                image = load_image(images.root / name, resize_max=None, grayscale=False, divisor=1)
            except ImageError as error:
                skipped[name] = str(error)
                logger.warning("Skipping a photo: %s", error)
                continue
            square = torch.nn.functional.interpolate(
                ((image.tensor - mean) / std)[None], (_SIZE, _SIZE), mode="bilinear", antialias=True
            )
            writer.add(name, model(square.to(device))[0].float().cpu().numpy())
    return skipped
