"""The step of a run that brings its model onto the Earth, where its photos carry GPS."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from edm_hloc.base.colmap import read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.images.gps import Fix, matching_names, read_fixes, read_positions
from edm_hloc.mapping.georeference import (
    CAMERAS,
    RECORD,
    Georeference,
    camera_centres,
    locate,
    middle_of,
    place_of,
    same_places,
    to_local,
    write_on_earth,
    write_placed,
)
from edm_hloc.mapping.output import part_folders
from edm_hloc.mapping.priors import PositionPriors
from edm_hloc.pipelines.run import Run

logger = logging.getLogger(__name__)

_EXTENDED = (
    "it was extended by more photos and keeps the frame that it had; edm-hloc georeference writes "
    "a copy that is on Earth"
)
STEP, _RESULT = "georeference", "georeferenced"
_WORTH_A_WORD = 3  # positions; of photos with fewer nothing is said
_LEAST_PRIORS = 3


def place_set_aside(run: Run) -> dict[str, Georeference]:
    """Where the model lies on Earth that is set aside; the files that tell it are set aside, too.

    Returns:
        By its name in the results; empty if it lies in a frame of its own.

    Raises:
        EdmHlocError: a file cannot be renamed.
    """
    run.put_aside(STEP)
    for step in (STEP, "model"):  # the latter's where it has kept the place of an earlier one
        results, _ = run.set_aside(step) or ({}, {})
        recorded = results.get(_RESULT) or {}
        if recorded.get("used"):
            return {_RESULT: Georeference.of(recorded)}
    return {}


def find_fixes(image_root: Path, names: Sequence[str], positions: str) -> dict[str, Fix]:
    """Positions of photos by name.

    Args:
        image_root: folder of the photos.
        names: of the photos.
        positions: "gps" of their EXIF data, "none", or the path of a table.

    Raises:
        EdmHlocError: the table cannot be read, or names none of the photos.
    """
    if positions == "none":
        return {}
    if positions == "gps":
        return read_fixes(image_root, names)
    path = Path(positions)
    return matching_names(read_positions(path, names=names), names, path)


def priors_of(fixes: Mapping[str, Fix], deviation: float) -> PositionPriors:
    """Positions for the mapping, in metres to the east, to the north and up from their middle.

    Photos that share a position have a larger deviation, so that together they count as one.

    Args:
        fixes: positions by the photos' names; those without altitude are left out.
        deviation: standard deviation in metres of those that tell none; of altitudes that tell none
            twice that of the rest of the position.

    Raises:
        EdmHlocError: there are too few.
    """
    high = {name: fix for name, fix in fixes.items() if fix.altitude is not None}
    groups = same_places(high)
    if len(groups) < _LEAST_PRIORS:
        several = "; photos that share a position count as one" if len(groups) < len(high) else ""
        raise EdmHlocError(
            f"Position priors need {_LEAST_PRIORS} photos whose position is known with its "
            f"altitude, and there are {len(groups)} of the {len(fixes)} with a position{several}: "
            "leave out --position-priors, or give a table by --positions."
        )
    names = [name for group in groups for name in group]
    chosen = [high[name] for name in names]
    places = to_local(chosen, middle_of(chosen))
    deviations = {}
    for group in groups:
        for name in group:
            level = high[name].accuracy or deviation
            up = high[name].altitude_accuracy or 2 * level
            deviations[name] = [math.sqrt(len(group)) * value for value in (level, level, up)]
    return PositionPriors(dict(zip(names, places.tolist(), strict=True)), deviations)


def keep_place_of(run: Run, reference: Path, made_from: str) -> None:
    """Records that the model of a run is where the one is whose frame it has, if that is on Earth.

    Args:
        run: with a model in ``model``.
        reference: folder of the other model.
        made_from: fingerprint of the step that made the model.

    Raises:
        EdmHlocError: a file cannot be written.
    """
    placed = place_of(reference)
    if placed is None:
        run.put_aside(STEP)  # of another reference
        run.discard_aside(STEP)
        return

    def work() -> dict[str, Any]:
        write_placed(placed, {"": read_model(run.out / "model")}, run.out)
        return {}

    depends_on = [made_from, asdict(placed)]
    run.step(STEP, depends_on, [run.out / RECORD], work, maybe=[run.out / CAMERAS])


def place_on_earth(run: Run, fixes: dict[str, Fix], made_from: str) -> None:
    """Moves the models of a run into one local frame on Earth, if their photos' positions allow it.

    A model that was extended keeps the frame that it had. One that an earlier run has moved stays
    in metres on Earth where these positions cannot place it, or there are none.

    Args:
        run: with a model in ``model``, and maybe others in ``model_parts``.
        fixes: positions, by the photos' names.
        made_from: fingerprint of the step that made the models.

    Raises:
        EdmHlocError: a file cannot be written.
    """
    folder = run.out / "model"
    if _RESULT not in run.results:
        run.bring_back(STEP)  # with the model
    recorded = run.results.get(_RESULT) or {}
    earlier = Georeference.of(recorded) if recorded.get("used") else None
    if len(fixes) < _WORTH_A_WORD:
        if earlier is None:
            run.put_aside(STEP)  # of other positions, which did not place it
            run.discard_aside(STEP)
            return
        logger.warning(
            "%s stays in metres on Earth, where an earlier run has brought it. For a model in "
            "a frame of its own remove it, then run again: nothing is matched again.",
            folder,
        )
        if (run.out / RECORD).exists():
            return
    extended = "extended" in run.results
    held = earlier.origin if earlier is not None and extended else None
    if held is not None and earlier is not None and not earlier.heights:
        # altitudes say nothing in a frame whose own is not known
        fixes = {name: replace(fix, altitude=None) for name, fix in fixes.items()}
    positions = run.settings.get("positions", "gps")
    source = "their GPS" if positions in ("gps", "none") else positions

    def work() -> dict[str, Any]:
        models, places = {}, {}
        origin = held
        for number, path in {"": folder, **part_folders(folder)}.items():
            models[number] = model = read_model(path)
            stays = held if not number else None
            found, placed = locate(camera_centres(model), fixes, source, held=stays, origin=origin)
            if placed.used and not number and extended and earlier is None:
                placed = Georeference(False, _EXTENDED, placed.source, placed.positions)
            elif placed.used and stays is not None and earlier is not None:
                placed = replace(placed, heights=earlier.heights)  # of the frame that it keeps
            elif placed.used:
                write_on_earth(model, found, path)
            elif not number and earlier is not None and not placed.used:
                placed = replace(earlier, why=placed.why, parts={})
            origin = origin or placed.origin
            places[number] = placed
        placed = replace(places.pop(""), parts=places)
        write_placed(placed, models, run.out)
        return {_RESULT: placed}

    depends_on = [made_from, {name: asdict(fix) for name, fix in fixes.items()}]
    run.step(STEP, depends_on, [run.out / RECORD], work, maybe=[run.out / CAMERAS])
