"""The registry of trained weights: where they are, what they are, and loading them safely."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import urllib.error
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import safe_open

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.frames import Origin
from edm_hloc.base.log import warn_once
from edm_hloc.models.edm import EDM
from edm_hloc.models.types import CONFIGS, EDMConfig

ENVIRONMENT_VARIABLE = "EDM_HLOC_WEIGHTS"


class WeightsError(EdmHlocError):
    """Weights that cannot be found, trusted or loaded; the message names file and remedy."""


@dataclass(frozen=True)
class Weights:
    """One entry of the registry.

    Attributes:
        name: what `--weights` takes.
        architecture: key of `edm_hloc.models.types.CONFIGS`.
        filename: in the cache, or in the package.
        licence: of the weights.
        description: one line.
        threshold: coarse probability below which matches are dropped.
        origin: where (0, 0) of the network's frame lies in the top-left pixel of its input.
        sha256: of the file; None if it changes with the package's version.
        urls: tried in this order; empty for weights that come with the package.
        preprocessing: what the network expects of an image.
    """

    name: str
    architecture: str
    filename: str
    licence: str
    description: str
    threshold: float
    origin: Origin
    sha256: str | None = None
    urls: tuple[str, ...] = ()
    preprocessing: str = "grey in [0, 1], sides multiples of 32"

    @property
    def path(self) -> Path:
        """Where the file is or would be."""
        if self.urls:
            return cache_directory() / self.filename
        return Path(str(resources.files("edm_hloc.models") / "shipped" / self.filename))


REGISTRY: dict[str, Weights] = {
    entry.name: entry
    for entry in (
        Weights(
            name="edm-outdoor",
            architecture="edm",
            filename="edm_outdoor.ckpt",
            licence="Apache-2.0",
            description="the authors' checkpoint, trained on MegaDepth at 832 px",
            threshold=0.05,
            origin="corner",  # of MegaDepth's intrinsics
            sha256="f686bebdd9705bf6918621a1a83695f83d698cbd8c3eed932847fe3678d13a97",
            urls=(
                "https://drive.usercontent.google.com/download"
                "?id=1Blu8cpjtKonVVf6YguQYoctycpMWH4bh&export=download&confirm=t",
            ),
        ),
        Weights(
            name="edm_s",
            architecture="edm_s",
            filename="edm_s.safetensors",
            licence="Apache-2.0",
            description="half the widths, trained from scratch by this project; in the package",
            threshold=0.2,
            origin="centre",  # of this project's renderer
        ),
    )
}
# The default is the first of these that is on this computer; nothing is downloaded unasked.
PREFERENCE = ("edm-outdoor", "edm_s")


@dataclass(frozen=True)
class WeightsInfo:
    """Which weights a run uses, for its log and its provenance.

    Attributes:
        origin: where (0, 0) of the network's frame lies in the top-left pixel of its input: at
            its "centre", as everywhere in this package, or at its outer "corner", so that half a
            pixel of the input is to be subtracted from each keypoint.
    """

    name: str
    path: Path
    sha256: str
    architecture: str
    licence: str
    threshold: float
    origin: Origin
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.architecture}, {self.reason}, SHA-256 {self.sha256[:12]})"


def cache_directory() -> Path:
    """Where downloaded weights are kept: $EDM_HLOC_CACHE, or the user's cache folder."""
    if "EDM_HLOC_CACHE" in os.environ:
        return Path(os.environ["EDM_HLOC_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "edm_hloc"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def pull(name: str, *, progress: bool = True) -> Path:
    """Make sure the registry's entry `name` is on this computer, downloading it if need be.

    Raises:
        WeightsError: unknown name, no network, or a file that is not the one expected.
    """
    entry = _entry(name)
    if entry.path.is_file():
        verify(name)
        return entry.path
    if not entry.urls:
        raise WeightsError(
            f"The weights '{name}' should come with the package but {entry.path} is missing; "
            "reinstall edm_hloc, or give --weights the path of a file."
        )
    entry.path.parent.mkdir(parents=True, exist_ok=True)
    problems = []
    for url in entry.urls:
        try:
            # Writes to a temporary file, removed unless the checksum is right.
            torch.hub.download_url_to_file(
                url, str(entry.path), hash_prefix=entry.sha256, progress=progress
            )
            return entry.path
        except RuntimeError:
            problems.append(f"{url} answered with another file than expected")
        except (urllib.error.URLError, OSError) as error:
            problems.append(f"{url}: {getattr(error, 'reason', error)}")
    raise WeightsError(
        f"Could not download the weights '{name}': {'; '.join(problems)}. On a computer with "
        f"network, download the file and put it at {entry.path}, or give --weights its path."
    )


def verify(name: str) -> str:
    """SHA-256 of the local file of entry `name`, checked against the registry.

    Raises:
        WeightsError: no such entry or file, or another checksum.
    """
    entry = _entry(name)
    if not entry.path.is_file():
        remedy = f"run: edm-hloc weights pull {name}" if entry.urls else "reinstall edm_hloc"
        raise WeightsError(f"The weights '{name}' are not at {entry.path}; {remedy}.")
    digest = file_sha256(entry.path)
    if entry.sha256 not in (None, digest):
        raise WeightsError(
            f"{entry.path} is not the file of the weights '{name}': its SHA-256 is {digest}, "
            f"expected {entry.sha256}. Delete it and run: edm-hloc weights pull {name}"
        )
    return digest


def weights_sha256(weights: str | Path | None = None) -> str:
    """SHA-256 of the file that `load` would read.

    Raises:
        WeightsError: there is no such file.
    """
    path = _find(weights)[1]
    if not path.is_file():
        raise WeightsError(f"There is no weights file {path}; check the path.")
    return file_sha256(path)


def load(
    weights: str | Path | None = None, device: str | torch.device = "cpu"
) -> tuple[EDM, WeightsInfo]:
    """The network with trained weights, in evaluation mode.

    Args:
        weights: a path (`.safetensors`, `.ckpt`, `.pth`), a name of the registry, or None for
            $EDM_HLOC_WEIGHTS and else the best weights on this computer.
        device: where the network goes.

    Raises:
        WeightsError: nothing found, not loadable, or made for another network.
    """
    entry, path, reason = _find(weights)
    state, metadata = read_state(path)
    config = stored_config(metadata, path)
    if config is None:
        architecture = entry.architecture if entry else _architecture_of(state, path)
        config = CONFIGS[architecture]
    else:
        same = (name for name, known in CONFIGS.items() if known.widths == config.widths)
        architecture = next(same, "custom")
    model = EDM(config)
    _load_strictly(model, state, path, architecture)
    threshold = entry.threshold if entry else CONFIG_THRESHOLDS.get(architecture, 0.2)
    sha256 = file_sha256(path)
    info = WeightsInfo(
        name=entry.name if entry else path.stem,
        path=path,
        sha256=sha256,
        architecture=architecture,
        licence=entry.licence if entry else metadata.get("licence", "unknown"),
        threshold=float(metadata.get("threshold", threshold)),
        origin=entry.origin if entry else _origin_of_file(path, sha256, metadata),
        reason=reason,
    )
    return model.eval().requires_grad_(False).to(device), info


def metadata_of(config: EDMConfig, threshold: float, origin: Origin) -> dict[str, str]:
    """What a safetensors file has to say of its network, so that `load` makes the same one."""
    return {"config": config_to_json(config), "threshold": str(threshold), "origin": origin}


def stored_origin(metadata: Mapping[str, str], path: Path) -> Origin | None:
    """Where a safetensors file's metadata puts (0, 0) of its network's frame; None if nowhere.

    Files that edm_hloc's training wrote without the key `origin` (up to version 0.1) were trained
    on its renderer, whose frame has the centre of the top-left pixel at (0, 0).

    Raises:
        WeightsError: the key has another value than "centre" or "corner".
    """
    origin = metadata.get("origin")
    if origin is None:
        return "centre" if "edm_hloc" in metadata else None
    if origin == "centre" or origin == "corner":
        return origin
    raise WeightsError(
        f"{path} has the origin '{origin}' in its metadata; it must be one of "
        f"{', '.join(get_args(Origin))}."
    )


def _origin_of_file(path: Path, sha256: str, metadata: Mapping[str, str]) -> Origin:
    """The origin of weights that were given by a path; see `WeightsInfo.origin`."""
    for entry in REGISTRY.values():
        if entry.sha256 == sha256:
            return entry.origin
    origin = stored_origin(metadata, path)
    if origin is None:
        warn_once(
            f"{path} does not say where (0, 0) of its network's pixel frame lies. The outer corner "
            "of the top-left pixel is assumed, as for EDM trained on MegaDepth. If the network was "
            "trained with (0, 0) at the centre of that pixel, save the weights as .safetensors "
            "with the metadata {'origin': 'centre'}; {'origin': 'corner'} silences this warning."
        )
        return "corner"
    return origin


def stored_config(metadata: Mapping[str, str], path: Path) -> EDMConfig | None:
    """The network that a file's metadata describes; None if it does not.

    Raises:
        WeightsError: the description is of no network that is known here.
    """
    if "config" not in metadata:
        return None
    try:
        return config_from_json(metadata["config"])
    except (ValueError, TypeError, KeyError) as error:
        raise WeightsError(
            f"{path} belongs to another network or version: its description of the network "
            f"cannot be read ({error})."
        ) from error


def config_to_json(config: EDMConfig) -> str:
    """The fields of a network's configuration as a JSON object."""
    return json.dumps(asdict(config))


def config_from_json(text: str) -> EDMConfig:
    """Inverse of `config_to_json`."""
    values: dict[str, Any] = json.loads(text)
    for name in ("widths", "layers"):
        values[name] = tuple(values[name])
    return EDMConfig(**values)


CONFIG_THRESHOLDS = {entry.architecture: entry.threshold for entry in REGISTRY.values()}


def read_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors of a weights file under the network's names, and its metadata.

    Pickled checkpoints are read without running anything in them: torch's restricted
    unpickler makes the tensors, and every other class they mention becomes an inert object.

    Raises:
        WeightsError: missing, damaged, or no state dict inside.
    """
    if not path.is_file():
        raise WeightsError(f"There is no weights file {path}; check the path.")
    metadata: dict[str, str] = {}
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                state: Any = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        else:
            state = _read_pickled(path)
    except Exception as error:  # a damaged archive or pickle can raise nearly anything
        raise WeightsError(_unreadable(path, error)) from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise WeightsError(f"{path} holds no state dict; give the path of an EDM checkpoint.")
    if any(str(key).startswith("matcher.") for key in state):
        state = {k[8:]: v for k, v in state.items() if str(k).startswith("matcher.")}
    return {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}, metadata


class _Inert:
    """Stands for any class a checkpoint mentions; takes whatever it is given, does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def _read_pickled(path: Path) -> Any:
    unknown = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    stand_ins = [(type("_Inert", (_Inert,), {}), name) for name in unknown]
    with torch.serialization.safe_globals(stand_ins):  # type: ignore[arg-type]
        return torch.load(path, map_location="cpu", weights_only=True)


def _unreadable(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")):
        return f"{path} is a web page, not weights: the download went wrong. Download it again."
    if isinstance(error, pickle.UnpicklingError) and "Weights only" in str(error):
        return (
            f"{path} is a pickle that would run code when loaded, and is refused. Get the "
            "checkpoint from its authors, or convert it to .safetensors where it was made."
        )
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (
        f"{path} ({path.stat().st_size:,} bytes) cannot be read as weights ({first_line}). "
        "It is damaged, incomplete or of another kind: download it again."
    )


def _entry(name: str) -> Weights:
    if name not in REGISTRY:
        raise WeightsError(
            f"There are no weights named '{name}' and no such file; "
            f"known names: {', '.join(REGISTRY)}."
        )
    return REGISTRY[name]


def _find(weights: str | Path | None) -> tuple[Weights | None, Path, str]:
    if weights is not None:
        if Path(weights).is_file() or (str(weights) not in REGISTRY and _looks_like_path(weights)):
            return None, Path(weights), "given by its path"
        return _entry(str(weights)), pull(str(weights)), "asked for by name"
    if os.environ.get(ENVIRONMENT_VARIABLE):
        entry, path, _ = _find(os.environ[ENVIRONMENT_VARIABLE])
        return entry, path, f"from ${ENVIRONMENT_VARIABLE}"
    for name in PREFERENCE:
        if REGISTRY[name].path.is_file():
            verify(name)
            return REGISTRY[name], REGISTRY[name].path, "the best weights on this computer"
    raise WeightsError(
        "There are no weights on this computer. Give --weights the path of a file, set "
        f"${ENVIRONMENT_VARIABLE}, or, with network, run: edm-hloc weights pull {PREFERENCE[0]}"
    )


def _looks_like_path(weights: str | Path) -> bool:
    return isinstance(weights, Path) or Path(weights).suffix != "" or os.sep in weights


def _architecture_of(state: dict[str, torch.Tensor], path: Path) -> str:
    width = state["backbone.conv1.weight"].shape[0] if "backbone.conv1.weight" in state else None
    for name, config in CONFIGS.items():
        if config.widths[0] == width:
            return name
    raise WeightsError(
        f"{path} holds no EDM network (its entries begin with "
        f"{', '.join(list(state)[:3]) or 'nothing'}); give the path of an EDM checkpoint."
    )


def _load_strictly(
    model: EDM, state: dict[str, torch.Tensor], path: Path, architecture: str
) -> None:
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
