"""The step of a run that brings its model onto the Earth, where its photos carry GPS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edm_hloc.base.colmap import read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.images.gps import Fix, matching_names, read_fixes, read_positions
from edm_hloc.mapping.georeference import (
    CAMERAS,
    RECORD,
    camera_centres,
    locate,
    write_on_earth,
    write_placed,
)
from edm_hloc.pipelines.run import Run

_WORTH_A_WORD = 3  # positions; of photos with fewer nothing is said


def forget_place(run: Run) -> None:
    """Removes what an earlier run found of the place of a model that is made anew."""
    if "georeferenced" in run.results:
        run.results.pop("georeferenced")
        run.done.pop("georeference", None)
        for name in (RECORD, CAMERAS):
            (run.out / name).unlink(missing_ok=True)


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
    fixes = read_positions(Path(positions))
    found = matching_names(fixes, names)
    if not found:
        few = ", ".join(list(fixes)[:2])
        raise EdmHlocError(
            f"{positions} has positions for none of the {len(names)} photos: it names {few}, the "
            f"photos are called {', '.join(names[:2])}."
        )
    return found


def place_on_earth(run: Run, fixes: dict[str, Fix], made_from: str) -> None:
    """Moves the model of a run into a local frame on Earth, if its photos' positions allow it.

    A model that was extended keeps the frame that it had.

    Args:
        run: with a model in ``model``.
        fixes: positions, by the photos' names.
        made_from: fingerprint of the step that made the model.

    Raises:
        EdmHlocError: a file cannot be written.
    """
    if len(fixes) < _WORTH_A_WORD:
        return
    folder = run.out / "model"
    earlier = run.results.get("georeferenced") or {}
    held = earlier.get("origin") if "extended" in run.results else None

    def work() -> dict[str, Any]:
        model = read_model(folder)
        found, placed = locate(
            camera_centres(model), fixes, "their GPS", held=None if held is None else tuple(held)
        )
        if placed.used and held is None:
            write_on_earth(model, found, folder)
        write_placed(model, placed, run.out)
        return {"georeferenced": placed}

    depends_on = [made_from, {name: asdict(fix) for name, fix in fixes.items()}]
    run.step("georeference", depends_on, [run.out / RECORD], work, maybe=[run.out / CAMERAS])
