"""Checkpoints of a training run, and the weights from which another run starts."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import write_whole
from edm_hloc.base.frames import Origin
from edm_hloc.base.text import read_json_object
from edm_hloc.models import weights
from edm_hloc.models.edm import EDM
from edm_hloc.models.types import EDMConfig
from edm_hloc.models.weights_file import (
    WeightsError,
    check_finite,
    config_from_json,
    read_state,
    stored_config,
    stored_origin,
)
from edm_hloc.training.config import TrainConfig

logger = logging.getLogger(__name__)

_EARLY_FILES = {"config.json", "training.csv", "validation.csv"}  # older than a checkpoint
_RUN_FILES = {*_EARLY_FILES, "weights.safetensors", "curves.png"}
LENGTH_SETTINGS = ("minutes", "steps")  # may be changed when a run is resumed


@dataclasses.dataclass
class Progress:
    """How far a run has come, over all resumes.

    Attributes:
        step: number of optimiser steps, including those that were skipped.
        pairs: training pairs, of all processes.
        seconds: time of training.
        skipped: steps without a finite gradient.
        earlier_pairs, earlier_seconds: those of the runs whose weights this one started from.
    """

    step: int = 0
    pairs: int = 0
    seconds: float = 0.0
    skipped: int = 0
    earlier_pairs: int = 0
    earlier_seconds: float = 0.0


@dataclasses.dataclass
class TrainingState:
    """All that changes in the course of a run.

    Attributes:
        module: the training step as Lightning Fabric has set it up.
        model: the network in it.
        average: the moving average of its weights, in evaluation mode.
        optimizer: as Lightning Fabric has set it up.
        progress: how far the run has come.
    """

    module: nn.Module
    model: EDM
    average: EDM
    optimizer: torch.optim.Optimizer
    progress: Progress


def save_checkpoint(path: Path, config: TrainConfig, state: TrainingState) -> None:
    """Writes all that is needed to continue a run; the file is replaced as a whole.

    Raises:
        EdmHlocError: a number of it is not finite; an earlier checkpoint stays.
    """
    content = {
        "config": config.to_json(),
        "progress": dataclasses.asdict(state.progress),
        "model": state.model.state_dict(),
        "average": state.average.state_dict(),
        "optimizer": state.optimizer.state_dict(),
    }
    try:
        check_checkpoint(content, path)
    except WeightsError as error:
        raise EdmHlocError(
            f"training diverged at step {state.progress.step:,}, and no checkpoint was written: "
            f"lower the learning rate; an earlier checkpoint in {path.parent} stays ({error})"
        ) from error
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_whole(path, buffer.getvalue())


def check_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Raises WeightsError if the content of a checkpoint holds NaN or an infinity."""
    tensors = {**content["model"], **{f"average {k}": v for k, v in content["average"].items()}}
    for number, of_parameter in content["optimizer"]["state"].items():
        tensors |= {f"optimizer {number} {name}": v for name, v in of_parameter.items()}
    check_finite({k: v for k, v in tensors.items() if isinstance(v, torch.Tensor)}, path)


def refuse_foreign_folder(out: Path) -> None:
    """Refuses to write a run over files of its files' names that no run has left.

    A run that was killed before its first checkpoint has left its settings and curves alone.

    Raises:
        EdmHlocError: there are such files.
    """
    if (out / "checkpoint.pt").exists():  # `read_checkpoint` judges it
        return
    there = {name for name in _RUN_FILES if (out / name).exists()}
    if there <= _EARLY_FILES and "config.json" in there:
        with contextlib.suppress(EdmHlocError):
            settings = read_json_object(out / "config.json", "file of training settings")
            if settings.keys() >= {f.name for f in dataclasses.fields(TrainConfig)}:
                return
    if there:
        raise EdmHlocError(
            f"{out} holds {', '.join(sorted(there))} but no checkpoint.pt, so that training would "
            "write over them: choose another output folder, or move them away"
        )


@contextlib.contextmanager
def reading_checkpoint(path: Path) -> Iterator[None]:
    """Turns any error on a damaged or foreign checkpoint into an EdmHlocError that names it.

    What torch says of such files is left out: it advises to load them in a way that runs whatever
    code they hold.
    """
    try:
        yield
    except Exception as error:  # torch raises almost anything
        raise EdmHlocError(
            f"{path} is damaged or no checkpoint of edm-hloc train, and was not loaded. Choose "
            "another output folder to begin a run afresh."
        ) from error


def read_checkpoint(path: Path, config: TrainConfig) -> dict[str, Any] | None:
    """The content of a run's checkpoint by the names of `save_checkpoint`; None if there is none.

    Raises:
        EdmHlocError: the file is damaged, or the run has other settings than `config` (only its
            length may differ).
    """
    if not path.exists():
        return None
    with reading_checkpoint(path):
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        stored = dict(json.loads(checkpoint["config"]))
    ours, defaults = json.loads(config.to_json()), json.loads(TrainConfig().to_json())
    # settings of the network that are younger than the run have their defaults
    network = json.loads(json.dumps(dataclasses.asdict(EDMConfig())))
    stored["model"] = network | stored.get("model", defaults["model"])
    differing = [
        k for k in ours if k not in LENGTH_SETTINGS and ours[k] != stored.get(k, defaults[k])
    ]
    if differing:
        raise EdmHlocError(
            f"{path} belongs to a run with other settings ({', '.join(differing)}); choose another "
            "output directory, and name the checkpoint as `initial` to start from its weights"
        )
    return checkpoint


class _InitialWeights(NamedTuple):
    """What a file says of a network.

    Attributes:
        state: its weights.
        average: their moving average; the weights themselves if there is none.
        network: its configuration; None if the file does not say.
        origin: where (0, 0) of its pixel frame lies; None if the file does not say.
        progress: of its training, as far as the file says.
    """

    state: dict[str, Any]
    average: dict[str, Any]
    network: EDMConfig | None
    origin: Origin | None
    progress: Progress


_FINE_STAGE = "fine_matching."
_FINE_SETTINGS = ("bins", "bidirectional")  # of the network, which are of its fine stage alone


def load_initial(
    initial: str, model: EDM, average: EDM, origin: Origin, fine_anew: bool = False
) -> Progress:
    """Loads the weights from which a run starts.

    Weights of another pixel frame are accepted with a warning: the run teaches them the new one.

    Args:
        initial: path of a run's `checkpoint.pt`, or weights by their path or name as for
            `weights.load`.
        model, average: the networks that get the weights and their moving average.
        origin: where (0, 0) of the run's pixel frame lies.
        fine_anew: whether the fine stage keeps the weights that it has, in both networks.

    Returns:
        What is known of the training of these weights.

    Raises:
        EdmHlocError: the file is missing, damaged, or of another network.
    """
    try:
        path = weights.find(initial)
        found = None if path.suffix == ".safetensors" else _read_run(path)
        found = _read_weights(path) if found is None else found
        if found.network is not None:
            _check_network(found.network, model.config, _FINE_SETTINGS if fine_anew else ())
        for network, state in ((model, found.state), (average, found.average)):
            network.load_state_dict(_but_fine(state, network) if fine_anew else state)
    except Exception as error:
        raise EdmHlocError(f"cannot start training from {initial}: {error}") from error
    _compare_origins(path, found.origin, origin)
    return found.progress


def _read_weights(path: Path) -> _InitialWeights:
    """What a file of weights says, and what the registry knows of it."""
    state, metadata = read_state(path)
    progress = Progress(
        pairs=int(metadata.get("pairs", 0)), seconds=3600 * float(metadata.get("hours", 0))
    )
    network, origin = stored_config(metadata, path), stored_origin(metadata, path)
    if network is None:
        network = weights.known_network(state, path)
    if origin is None:
        origin = weights.known_origin(weights.file_sha256(path))
    return _InitialWeights(state, state, network, origin, progress)


def _read_run(path: Path) -> _InitialWeights | None:
    """What a run's checkpoint says; None if the file is no such checkpoint."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        config = json.loads(checkpoint["config"])
        return _InitialWeights(
            checkpoint["model"],
            checkpoint["average"],
            config_from_json(json.dumps(config["model"])),
            config.get("origin", TrainConfig.origin),
            Progress(**checkpoint["progress"]),
        )
    except Exception:  # torch.load raises almost anything
        return None


def _but_fine(state: dict[str, Any], network: EDM) -> dict[str, Any]:
    """The weights of a file with the network's own ones of the fine stage."""
    own = {k: v for k, v in network.state_dict().items() if k.startswith(_FINE_STAGE)}
    return {k: v for k, v in state.items() if not k.startswith(_FINE_STAGE)} | own


def _check_network(theirs: EDMConfig, ours: EDMConfig, free: tuple[str, ...]) -> None:
    """Refuses weights of another network, even if their shapes fit, but for the `free` settings."""
    theirs = dataclasses.replace(theirs, **{name: getattr(ours, name) for name in free})
    # The size of the training images does not change the meaning of any weight.
    theirs = dataclasses.replace(theirs, train_size=ours.train_size)
    stored, own = dataclasses.asdict(theirs), dataclasses.asdict(ours)
    differing = json.dumps({k: v for k, v in stored.items() if v != own[k]})
    if theirs != ours:
        raise EdmHlocError(f"they are of another network; train it with --set 'model={differing}'")


def _compare_origins(path: Path, theirs: Origin | None, ours: Origin) -> None:
    """Warns if the weights' pixel frame is not that of the run, or not known."""
    if theirs is None:
        logger.warning(
            "%s does not say in which pixel frame its weights were trained (a safetensors file "
            "does so by the metadata `origin`). This run trains them in the frame with (0, 0) at "
            "the %s of the top-left pixel; weights trained on MegaDepth, such as the authors', are "
            "in the corner frame, which --set origin=corner keeps.",
            path,
            ours,
        )
    elif theirs != ours:
        logger.warning(
            "The weights of %s were trained with (0, 0) of the pixel frame at the %s of the "
            "top-left pixel; this run moves it to the %s, so that the network has to learn a shift "
            "of half a pixel. --set origin=%s keeps the frame.",
            path,
            theirs,
            ours,
            theirs,
        )
