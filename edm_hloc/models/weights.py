"""Registered weights on this computer, and loading a network with weights."""

from __future__ import annotations

import hashlib
import http.client
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from edm_hloc.base.files import make_folder
from edm_hloc.base.frames import Origin
from edm_hloc.base.log import warn_once
from edm_hloc.models.edm import EDM
from edm_hloc.models.registry import PREFERENCE, REGISTRY, RegisteredWeights
from edm_hloc.models.types import CONFIGS, EDMConfig
from edm_hloc.models.weights_file import (
    WeightsError,
    read_state,
    stored_config,
    stored_origin,
    stored_threshold,
)

ENVIRONMENT_VARIABLE = "EDM_HLOC_WEIGHTS"


@dataclass(frozen=True)
class WeightsInfo:
    """The weights that a network was loaded with, for logs and provenance.

    Attributes:
        name: in the registry, or the file's name without its suffix.
        path: of the file.
        sha256: of the file.
        architecture: key of `edm_hloc.models.types.CONFIGS`, or "custom".
        threshold: recommended minimum of the dual-softmax probability of a match.
        origin: where (0, 0) of the network's frame lies in the top-left pixel of its input: at
            its "centre", as everywhere in this package, or at its outer "corner"; then half a
            pixel of the input is to be subtracted from the network's keypoints.
        reason: why these weights were chosen.
    """

    name: str
    path: Path
    sha256: str
    architecture: str
    threshold: float
    origin: Origin
    reason: str

    @property
    def argument(self) -> str:
        """What `--weights` takes for them."""
        known = self.name in REGISTRY and REGISTRY[self.name].path == self.path
        return self.name if known else str(self.path)

    def __str__(self) -> str:
        return f"{self.name} ({self.architecture}, {self.reason}, SHA-256 {self.sha256[:12]})"


def _is_there(path: Path) -> bool:
    """Whether there is such a file in a folder that this user may read."""
    try:
        return path.is_file()
    except OSError:
        return False


def file_sha256(path: Path) -> str:
    """SHA-256 of a file as hexadecimal digits. Raises WeightsError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        if not path.is_file():
            raise WeightsError(f"There is no weights file {path}; check the path.")
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise WeightsError(f"Cannot read {path}: {error.strerror or error}.") from error
    return digest.hexdigest()


def pull(name: str) -> Path:
    """Path of the registered weights `name`, downloaded if they are not on this computer.

    Raises:
        WeightsError: the name is unknown, the download fails, or the file has another checksum.
    """
    path = _fetched(_entry(name))
    verify(name)
    return path


def _fetched(entry: RegisteredWeights) -> Path:
    """Path of registered weights, downloaded if they are not there; what is there is not checked.

    Raises:
        WeightsError: the download fails, or gives another file.
    """
    name = entry.name
    if _is_there(entry.path):
        return entry.path
    if not entry.urls:
        raise WeightsError(
            f"The weights '{name}' should come with the package but {entry.path} is missing; "
            "reinstall edm_hloc, or give --weights the path of a file."
        )
    problems = download(entry.urls, entry.path, entry.sha256)
    if problems:
        raise WeightsError(
            f"Could not download the weights '{name}': {problems}. On a computer with network, "
            f"download the file and put it at {entry.path}, or give --weights its path."
        )
    return entry.path


def download(urls: Sequence[str], path: Path, sha256: str | None) -> str:
    """Downloads a file from the first of some addresses that has it, with a progress bar.

    Args:
        urls: addresses of the file, tried in this order.
        path: where to write it; its folder is made.
        sha256: of the file; another one is not written.

    Returns:
        Why each of the addresses failed; empty if one did not.

    Raises:
        EdmHlocError: the folder cannot be made.
    """
    make_folder(path.parent)
    problems = []
    for url in urls:
        try:
            # Writes to a temporary file, which is removed if the checksum is wrong.
            torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256)
            return ""
        except RuntimeError:
            problems.append(f"{url} answered with another file than expected")
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
            problems.append(f"{url}: {reason}")
    return "; ".join(problems)


def verify(name: str) -> str:
    """SHA-256 of the local file of the registered weights `name`, checked against the registry.

    Raises:
        WeightsError: the name is unknown, the file is missing, or it has another checksum.
    """
    entry = _entry(name)
    if not entry.path.is_file():
        remedy = f"run: edm-hloc weights pull {name}" if entry.urls else "reinstall edm_hloc"
        raise WeightsError(f"The weights '{name}' are not at {entry.path}; {remedy}.")
    return _checked_sha256(entry, entry.path)


def _checked_sha256(entry: RegisteredWeights | None, path: Path) -> str:
    """SHA-256 of a weights file.

    Raises:
        WeightsError: it cannot be read, or is not the file of its entry in the registry.
    """
    digest = file_sha256(path)
    if entry is not None and entry.sha256 != digest:
        remedy = f"Delete it and run: edm-hloc weights pull {entry.name}"
        if not entry.urls:
            remedy = "Reinstall edm_hloc, or give --weights the path of a file."
        raise WeightsError(
            f"{path} is not the file of the weights '{entry.name}': its SHA-256 is {digest}, "
            f"expected {entry.sha256}. {remedy}"
        )
    return digest


def weights_sha256(weights: str | Path | None = None) -> str:
    """SHA-256 of the file that `load` would read.

    Raises:
        WeightsError: there is no such file, or it is not that of the registry.
    """
    entry, path, _ = _find(weights)
    return _checked_sha256(entry, path)


def load(
    weights: str | Path | None = None, device: str | torch.device = "cpu"
) -> tuple[EDM, WeightsInfo]:
    """A network with trained weights, in evaluation mode and without gradients.

    Args:
        weights: path of a `.safetensors`, `.ckpt` or `.pth` file, name in the registry, or None
            for $EDM_HLOC_WEIGHTS, else the best weights on this computer.
        device: of the network.

    Raises:
        WeightsError: no weights are found, or the file cannot be read or belongs to another
            network.
    """
    entry, path, reason = _find(weights)
    sha256 = _checked_sha256(entry, path)
    state, metadata = read_state(path)
    architecture, config = _network_of(entry, state, metadata, path)
    model = EDM(config)
    _load_strictly(model, state, path, architecture)
    threshold = stored_threshold(metadata, path)
    if threshold is None:
        threshold = entry.threshold if entry else _THRESHOLDS.get(architecture, 0.2)
    info = WeightsInfo(
        name=entry.name if entry else path.stem,
        path=path,
        sha256=sha256,
        architecture=architecture,
        threshold=threshold,
        origin=entry.origin if entry else _origin_of_file(path, sha256, metadata),
        reason=reason,
    )
    return model.eval().requires_grad_(False).to(device), info


# For files that do not state a threshold.
_THRESHOLDS = {entry.architecture: entry.threshold for entry in REGISTRY.values()}


def _network_of(
    entry: RegisteredWeights | None,
    state: dict[str, torch.Tensor],
    metadata: Mapping[str, str],
    path: Path,
) -> tuple[str, EDMConfig]:
    """Name and configuration of the architecture: by the metadata, the registry, or the shapes."""
    config = stored_config(metadata, path)
    if config is None:
        architecture = entry.architecture if entry else _architecture_of(state, path)
        return architecture, CONFIGS[architecture]
    for name, known in CONFIGS.items():
        if known.widths == config.widths:
            return name, config
    return "custom", config


def known_origin(sha256: str) -> Origin | None:
    """The origin of a file of the registry, wherever it lies; None if it is none."""
    return next((e.origin for e in REGISTRY.values() if e.sha256 == sha256), None)


def known_network(state: Mapping[str, torch.Tensor], path: Path) -> EDMConfig | None:
    """The network of `CONFIGS` whose first layer is as wide as the file's; None if none is.

    Raises:
        WeightsError: the file holds no EDM network.
    """
    if "backbone.conv1.weight" not in state:
        raise WeightsError(
            f"{path} holds no EDM network (its entries begin with "
            f"{', '.join(list(state)[:3]) or 'nothing'}); give the path of an EDM checkpoint."
        )
    width = state["backbone.conv1.weight"].shape[0]
    return next((config for config in CONFIGS.values() if config.widths[0] == width), None)


def find(weights: str | Path | None = None) -> Path:
    """Path of the file that `load` would read, downloaded if it is asked for by its name.

    Raises:
        WeightsError: there is no such file or name, or it is not that of the registry.
    """
    entry, path, _ = _find(weights)
    _checked_sha256(entry, path)
    return path


def _origin_of_file(path: Path, sha256: str, metadata: Mapping[str, str]) -> Origin:
    """The origin of weights given by a path: by the registry, the metadata, or a guess."""
    origin = known_origin(sha256) or stored_origin(metadata, path)
    if origin is None:
        warn_once(
            f"{path} does not say where (0, 0) of its network's pixel frame lies. The outer corner "
            "of the top-left pixel is assumed, as for EDM trained on MegaDepth. If the network was "
            "trained with (0, 0) at the centre of that pixel, save the weights as .safetensors "
            "with the metadata {'origin': 'centre'}; {'origin': 'corner'} silences this warning."
        )
        return "corner"
    return origin


def _entry(name: str) -> RegisteredWeights:
    if name not in REGISTRY:
        raise WeightsError(
            f"There are no weights named '{name}' and no such file; "
            f"known names: {', '.join(REGISTRY)}."
        )
    return REGISTRY[name]


def _find(weights: str | Path | None) -> tuple[RegisteredWeights | None, Path, str]:
    """The registry's entry if the weights were found there, the path, and why these weights.

    Whether the file is that of the registry is left to `_checked_sha256`.
    """
    if weights is not None:
        if _is_there(Path(weights)) or (str(weights) not in REGISTRY and _looks_like_path(weights)):
            return None, Path(weights), "given by its path"
        entry = _entry(str(weights))
        return entry, _fetched(entry), "asked for by name"
    if os.environ.get(ENVIRONMENT_VARIABLE):
        found, path, _ = _find(os.environ[ENVIRONMENT_VARIABLE])
        return found, path, f"from ${ENVIRONMENT_VARIABLE}"
    for name in PREFERENCE:
        if _is_there(REGISTRY[name].path):
            return REGISTRY[name], REGISTRY[name].path, "the best weights on this computer"
    raise WeightsError(
        "There are no weights on this computer. Give --weights the path of a file, set "
        f"${ENVIRONMENT_VARIABLE}, or, with network, run: edm-hloc weights pull {PREFERENCE[0]}"
    )


def _looks_like_path(weights: str | Path) -> bool:
    return isinstance(weights, Path) or Path(weights).suffix != "" or os.sep in weights


def _architecture_of(state: dict[str, torch.Tensor], path: Path) -> str:
    """Name of the architecture whose first layer has the width that is in the file."""
    network = known_network(state, path)
    if network is not None:
        return next(name for name, config in CONFIGS.items() if config == network)
    raise WeightsError(
        f"{path} holds an EDM network of other widths than {', '.join(CONFIGS)} have, and does not "
        "say which: give the .safetensors file that its training wrote."
    )


def _load_strictly(
    model: EDM, state: dict[str, torch.Tensor], path: Path, architecture: str
) -> None:
    """Loads `state`, or raises an error that says how it differs from the network's."""
    expected = {key: value.shape for key, value in model.state_dict().items()}
    missing = sorted(expected.keys() - state.keys())
    extra = sorted(state.keys() - expected.keys())
    reshaped = [k for k in expected if k in state and state[k].shape != expected[k]]
    for what, keys in (("lacks", missing), ("has unknown", extra), ("has misshapen", reshaped)):
        if keys:
            raise WeightsError(
                f"{path} does not fit the network '{architecture}': it {what} {len(keys)} of "
                f"{len(expected)} entries, {keys[0]} for one. It belongs to another network "
                "or version; give a checkpoint of EDM."
            )
    model.load_state_dict(state, strict=True)
