"""Reading of weights files: tensors, and the metadata that describe the network."""

from __future__ import annotations

import contextlib
import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import safe_open

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.frames import Origin
from edm_hloc.models.types import EDMConfig

_WRAPPERS = ("module.", "matcher.")  # of torch's parallel modules, and of the authors' training
# An archive of weights that somebody packed again with compression unpacks to less than this many
# times its size
_MOST_UNPACKED = 4


class WeightsError(EdmHlocError):
    """Weights cannot be found, trusted or loaded; the message names the file and a remedy."""


def metadata_of(config: EDMConfig, threshold: float, origin: Origin) -> dict[str, str]:
    """Metadata of a safetensors file from which `weights.load` builds the same network.

    Args:
        config: the network's architecture.
        threshold: recommended minimum of the dual-softmax probability of a match.
        origin: where (0, 0) of the network's frame lies in the top-left pixel of its input.
    """
    return {"config": config_to_json(config), "threshold": str(threshold), "origin": origin}


def stored_origin(metadata: Mapping[str, str], path: Path) -> Origin | None:
    """The origin that a file's metadata state (see `metadata_of`); None if they state none.

    Files written by edm_hloc's training (which have the key `edm_hloc`) without the key `origin`
    are of networks trained on its renderer, in whose frame the centre of the top-left pixel is
    at (0, 0).

    Raises:
        WeightsError: the key `origin` has another value than "centre" or "corner".
    """
    origin = metadata.get("origin")
    if origin is None:
        return "centre" if "edm_hloc" in metadata else None
    known: Origin
    for known in get_args(Origin):
        if origin == known:
            return known
    raise WeightsError(
        f"{path} has the origin '{origin}' in its metadata; it must be one of "
        f"{', '.join(get_args(Origin))}."
    )


def stored_threshold(metadata: Mapping[str, str], path: Path) -> float | None:
    """The recommended threshold that a file's metadata state; None if they state none.

    Raises:
        WeightsError: it is no probability in [0, 1).
    """
    text = metadata.get("threshold")
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        if 0 <= (threshold := float(text)) < 1:
            return threshold
    raise WeightsError(
        f"{path} has the threshold '{text}' in its metadata; it must be a number from 0 to below "
        "1: save the weights again with another one, or without."
    )


def stored_config(metadata: Mapping[str, str], path: Path) -> EDMConfig | None:
    """The architecture that a file's metadata describe; None if they describe none.

    Raises:
        WeightsError: the description cannot be read by this version.
    """
    if "config" not in metadata:
        return None
    try:
        return config_from_json(metadata["config"])
    except (ValueError, TypeError, KeyError, EdmHlocError) as error:
        raise WeightsError(
            f"{path} belongs to another network or version: its description of the network "
            f"cannot be read ({error})."
        ) from error


def config_to_json(config: EDMConfig) -> str:
    """The fields of an architecture as a JSON object."""
    return json.dumps(asdict(config))


def config_from_json(text: str) -> EDMConfig:
    """The architecture that `config_to_json` wrote.

    Raises:
        ValueError, TypeError, KeyError or EdmHlocError: the text is of another kind or version.
    """
    values: dict[str, Any] = json.loads(text)
    for name in ("widths", "layers"):
        values[name] = tuple(values[name])
    return EDMConfig(**values)


def read_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a weights file under the network's parameter names, and its metadata.

    Pickled checkpoints are read without executing code in them: PyTorch's restricted unpickler
    creates the tensors, and an object of any other class is replaced by an `_UnknownObject`.
    Their metadata are empty.

    Raises:
        WeightsError: the file is missing or damaged, contains no state dict, or a tensor with
            numbers that are not finite.
    """
    try:
        if not path.is_file():
            raise WeightsError(f"There is no weights file {path}; check the path.")
        with path.open("rb"):
            pass
    except OSError as error:
        raise WeightsError(f"Cannot read the weights {path}: {error.strerror}.") from None
    metadata: dict[str, str] = {}
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                state: Any = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        else:
            state = _read_pickled(path)
    except Exception as error:  # a damaged archive or pickle can raise anything
        raise WeightsError(_unreadable(path, error)) from None
    if isinstance(state, dict) and {"config", "average", "progress"} <= state.keys():
        raise WeightsError(
            f"{path} is the checkpoint of a training run: give the path of the weights.safetensors "
            "that the run wrote beside it."
        )
    for name in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict):
        raise WeightsError(f"{path} holds no state dict; give the path of an EDM checkpoint.")
    while prefix := next((p for p in _WRAPPERS if any(str(k).startswith(p) for k in state)), ""):
        state = {k.removeprefix(prefix): v for k, v in state.items() if str(k).startswith(prefix)}
    tensors = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
    check_finite(tensors, path)
    return tensors, metadata


def check_finite(tensors: Mapping[str, torch.Tensor], source: Path | str) -> None:
    """Refuses a network that would give NaN, or no matches without a word.

    Args:
        tensors: parameters and buffers by name.
        source: the file, or what else the message calls them.

    Raises:
        WeightsError: a tensor holds NaN or an infinity.
    """
    wrong = {
        name: count
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and (count := int((~tensor.isfinite()).sum()))
    }
    if wrong:
        name, count = next(iter(wrong.items()))
        raise WeightsError(
            f"The weights {source} are damaged, or their training went wrong: {count} of "
            f"{tensors[name].numel()} numbers in {name} are NaN or infinite, in {len(wrong)} of "
            f"{len(tensors)} tensors some are. Download the file again, or take other weights."
        )


class _UnknownObject:
    """Placeholder for an object of a class unknown to the unpickler; ignores all arguments."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def _check_unpacked_size(path: Path) -> None:
    """Refuses an archive that unpacks to far more than its size: `torch.save` compresses nothing.

    Raises:
        ValueError: it does; reading it could fill the memory.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    packed = path.stat().st_size
    if unpacked > _MOST_UNPACKED * packed:
        raise ValueError(f"it unpacks to {unpacked:,} bytes, which weights do not")


def _read_pickled(path: Path) -> Any:
    """The content of a file of `torch.save`, with placeholders for unknown objects."""
    _check_unpacked_size(path)
    unknown = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    placeholders = [(type("_UnknownObject", (_UnknownObject,), {}), name) for name in unknown]
    with torch.serialization.safe_globals(placeholders):  # type: ignore[arg-type]
        return torch.load(path, map_location="cpu", weights_only=True)


def _unreadable(path: Path, error: Exception) -> str:
    """The message for a file that cannot be read: what it seems to be, and what to do."""
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
