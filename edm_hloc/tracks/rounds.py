"""What a round of the refinement leaves to the next one, kept in a folder until the end."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pycolmap

from edm_hloc.base.binary_models import check_binary_model
from edm_hloc.base.colmap import read_model
from edm_hloc.base.errors import EdmHlocError, NoRoomError
from edm_hloc.base.files import claim_folder, remove_leftover
from edm_hloc.mapping.left_out import LeftOut

logger = logging.getLogger(__name__)

_STATE = "state.json"


@dataclass
class Progress:
    """A model between two rounds.

    Attributes:
        model: as it is after `rounds` rounds.
        rounds: number of rounds that are done.
        added: observations that the model did not have.
        repeated: ids of points that others repeated.
        dropped: number of the keypoint of each observation that was dropped, by point and image:
            it is used again when the point is found there after all.
        registered: names of the photos that came in after the first round.
        late: image and keypoint of what these see, by the point's id.
    """

    model: pycolmap.Reconstruction
    rounds: int = 0
    added: int = 0
    repeated: set[int] = field(default_factory=set)
    dropped: dict[tuple[int, int], int] = field(default_factory=dict)
    registered: list[str] = field(default_factory=list)
    late: dict[int, list[tuple[int, int]]] = field(default_factory=dict)


class KeptRounds:
    """The model after each round, to go on from after a kill.

    Args:
        folder: of ours alone; what lies there of other inputs is removed.
        made_from: fingerprint of everything that the rounds depend on.

    Raises:
        NoRoomError: the folder cannot be written.
    """

    def __init__(self, folder: Path, made_from: str) -> None:
        self._folder = folder
        claim_folder(folder, made_from)

    def keep(self, progress: Progress) -> Progress:
        """Writes the state after a round.

        Returns:
            The same, read again: points of a model that was read have another order than those of
            one that was changed, and a run that goes on from here is to give the same bits.
        """
        place = self._place(progress.rounds)
        temporary = place.with_suffix(".tmp")
        state = {
            "added": progress.added,
            "repeated": sorted(progress.repeated),
            "dropped": [[*key, index] for key, index in progress.dropped.items()],
            "registered": progress.registered,
            "late": [[point, *seen] for point, every in progress.late.items() for seen in every],
        }
        try:
            remove_leftover(temporary)
            temporary.mkdir()
            progress.model.write_binary(temporary)
            (temporary / _STATE).write_text(json.dumps(state), "utf-8")
            check_binary_model(temporary)  # COLMAP does not look whether the disk was full
            temporary.rename(place)
        except (OSError, EdmHlocError) as error:
            raise NoRoomError(
                f"Cannot write {place}: {getattr(error, 'strerror', None) or error}. Free some "
                "disk space, then run again: what is already stored is kept."
            ) from error
        return self._read(progress.rounds)

    def latest(self, rounds: int) -> Progress | None:
        """The state after the last round that is whole, of so many; None if there is none."""
        for number in range(rounds, 0, -1):
            place = self._place(number)
            if place.is_dir():
                try:
                    found = self._read(number)
                except (EdmHlocError, OSError, ValueError, KeyError):
                    shutil.rmtree(place, ignore_errors=True)
                    continue
                logger.warning("Refining goes on after round %d of an interrupted run.", number)
                return found
        return None

    def remove(self) -> None:
        """Removes all that was kept."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self, number: int) -> Progress:
        place = self._place(number)
        state = json.loads((place / _STATE).read_text("utf-8"))
        late: dict[int, list[tuple[int, int]]] = {}
        for point, image, index in state["late"]:
            late.setdefault(point, []).append((image, index))
        return Progress(
            read_model(place),
            number,
            int(state["added"]),
            set(state["repeated"]),
            {(point, image): index for point, image, index in state["dropped"]},
            list(state["registered"]),
            late,
        )

    def _place(self, number: int) -> Path:
        return self._folder / f"round-{number}"


@dataclass(frozen=True)
class BetweenRounds:
    """What comes into a model between its rounds, and where the model is kept then.

    Attributes:
        kept: gets the model after each round but the last; what an interrupted run has left there
            is gone on from.
        left_out: photos that are tried once more, after the first round.
        masks: of photos, by name (see `images.masks`): no point is looked for where they are black.
    """

    kept: KeptRounds | None = None
    left_out: LeftOut | None = None
    masks: Mapping[str, Path] = field(default_factory=dict)
