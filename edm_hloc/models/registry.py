"""The registry of trained weights. It needs no torch, so that a list of them is there at once."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from edm_hloc.base.frames import Origin


def cache_directory() -> Path:
    """Folder of downloaded weights: $EDM_HLOC_CACHE, else a folder in the user's cache."""
    if os.environ.get("EDM_HLOC_CACHE"):
        return Path(os.environ["EDM_HLOC_CACHE"])
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "edm_hloc"
    try:
        return Path.home() / ".cache" / "edm_hloc"
    except RuntimeError:  # no HOME, and no entry for the user
        return Path(tempfile.gettempdir()) / "edm_hloc"


@dataclass(frozen=True)
class RegisteredWeights:
    """One entry of the registry.

    Attributes:
        name: argument of `--weights`.
        architecture: key of `edm_hloc.models.types.CONFIGS`.
        filename: of the file in the cache, or in the package if there are no `urls`.
        licence: of the weights.
        description: one line for `edm-hloc weights list`.
        threshold: recommended minimum of the dual-softmax probability of a match.
        origin: where (0, 0) of the network's frame lies in the top-left pixel of its input, which
            follows from the intrinsics and depths it was trained on.
        sha256: of the file; of one in the package that of this version, which a test compares.
        urls: for the download, tried in this order; empty for weights in the package.
    """

    name: str
    architecture: str
    filename: str
    licence: str
    description: str
    threshold: float
    origin: Origin
    sha256: str
    urls: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """Path of the file, whether it exists or not."""
        if self.urls:
            return cache_directory() / self.filename
        return Path(str(resources.files("edm_hloc.models") / "shipped" / self.filename))


REGISTRY: dict[str, RegisteredWeights] = {
    entry.name: entry
    for entry in (
        RegisteredWeights(
            name="edm-outdoor",
            architecture="edm",
            filename="edm_outdoor.ckpt",
            licence="Apache-2.0",
            description="the authors' checkpoint, trained on MegaDepth at 832 px",
            threshold=0.05,
            origin="corner",  # as in MegaDepth's intrinsics
            sha256="f686bebdd9705bf6918621a1a83695f83d698cbd8c3eed932847fe3678d13a97",
            urls=(
                "https://drive.usercontent.google.com/download"
                "?id=1Blu8cpjtKonVVf6YguQYoctycpMWH4bh&export=download&confirm=t",
            ),
        ),
        RegisteredWeights(
            name="edm_s",
            architecture="edm_s",
            filename="edm_s.safetensors",
            licence="Apache-2.0",
            description="half the widths, trained from scratch by this project; in the package",
            threshold=0.2,
            origin="centre",  # as in this project's renderer
            sha256="146bc55bbef8d877b457093a892c15604ff824a57edf888d4afd5419d60e7e68",
        ),
    )
}
# The default weights are the first of these on this computer; nothing is downloaded unasked.
PREFERENCE = ("edm-outdoor", "edm_s")
