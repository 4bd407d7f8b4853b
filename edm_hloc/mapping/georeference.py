"""A model brought into a local frame on Earth: metres to the east, to the north, and up.

The frame has its origin among the photos, so that coordinates stay small; the origin's latitude,
longitude and altitude (WGS 84) are recorded. A similarity is found between positions in the model
and on Earth that most of them agree with, whatever the others say. Where too few agree, or where
they do not determine the frame, the model keeps its own, and the reason is given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from edm_hloc.base.colmap import centres_of, posed_images, quiet_colmap
from edm_hloc.base.errors import EdmHlocError, NoRoomError
from edm_hloc.base.files import write_whole
from edm_hloc.images.gps import Fix, Mark
from edm_hloc.images.listed import listed_names
from edm_hloc.mapping.output import new_model_folder, run_folder
from edm_hloc.mapping.similarity import (
    LEAST_AGREEING,
    fit_similarity,
    moved,
    uncertainty_of,
    weights_of,
)

RECORD, CAMERAS = "georeference.json", "cameras.geojson"
_ORDINARY = 3.0  # m, standard deviation of a fix that tells none, beside others that do
_OF_THE_FRAME = (
    *("used", "source", "origin", "heights"),
    *("scale_uncertainty", "tilt_uncertainty", "told_accuracy"),
)
_MAX_SCALE, _MAX_TILT = 0.05, 5.0  # uncertainty (share, degrees) above which there is no frame
_LINE = 1e-3  # extent of positions across a line, as a share of that along it
_WGS84 = pycolmap.GPSTransformEllipsoid.WGS84


@dataclass(frozen=True)
class Georeference:
    """How a model lies on Earth, or why it does not.

    Attributes:
        used: whether the model is in the local frame.
        why: the reason, if it is not; or why it is where an earlier run has brought it.
        source: where the positions are from.
        positions: number of positions of registered photos, or of control points.
        origin: latitude and longitude in degrees and altitude in metres of (0, 0, 0).
        heights: whether the positions have altitudes; if not, all count as of one height, and the
            origin's altitude says nothing.
        residuals: (east, north, up) in metres from each position to the model's, by name; without
            heights, up is 0.
        wrong: names of the positions that were left out, as they cannot be explained by the errors
            of the others, whose tails are long.
        median, largest: length of the residuals in metres, of those that were used.
        scale: metres per unit of the model's earlier frame.
        scale_uncertainty: of the scale, as a share; None without heights, as a slope on which the
            cameras may lie would change it.
        tilt_uncertainty: of the frame's direction, degrees; None likewise.
        told_accuracy: median of the standard deviations that the photos tell (RTK, phones), in
            metres; None if they tell none.
        parts: the same of the other models of a run, by their numbers, all with one origin.
    """

    used: bool
    why: str = ""
    source: str = ""
    positions: int = 0
    origin: tuple[float, float, float] | None = None
    heights: bool = True
    residuals: dict[str, list[float]] = field(default_factory=dict)
    wrong: tuple[str, ...] = ()
    median: float = 0.0
    largest: float = 0.0
    scale: float = 1.0
    scale_uncertainty: float | None = 0.0
    tilt_uncertainty: float | None = 0.0
    told_accuracy: float | None = None
    parts: dict[str, Georeference] = field(default_factory=dict)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Georeference:
        """What `dataclasses.asdict` has made a record of; heights that it has none of are 0."""
        parts = {number: cls.of(part) for number, part in record.get("parts", {}).items()}
        origin = record.get("origin")
        if origin is not None:
            latitude, longitude, altitude = origin
            origin = latitude, longitude, altitude or 0.0
        return cls(**{**record, "parts": parts, "origin": origin})


def camera_centres(model: pycolmap.Reconstruction) -> dict[str, np.ndarray]:
    """(3,) projection centres of the registered photos, by name."""
    return {name: image.projection_center() for name, image in posed_images(model).items()}


def same_places(fixes: Mapping[str, Fix]) -> list[list[str]]:
    """Names in order, those with the very same position on Earth together.

    It was measured once: of a panorama, whose views all have it, of a rig, or by a receiver that
    has not moved on yet. Its error is the same for all of them.
    """
    groups: dict[tuple[float, float, float | None], list[str]] = {}
    for name, fix in sorted(fixes.items()):
        groups.setdefault((fix.latitude, fix.longitude, fix.altitude), []).append(name)
    return list(groups.values())


def middle_of(fixes: Sequence[Fix]) -> tuple[float, float, float]:
    """Medians of latitudes, longitudes and altitudes; heights not known count as 0."""
    first = fixes[0].longitude  # from which others are reckoned, across the 180th meridian as well
    rows = [(f.latitude, (f.longitude - first + 180) % 360, f.altitude or 0.0) for f in fixes]
    latitude, east, altitude = map(float, np.median(rows, axis=0))
    return latitude, (first + east) % 360 - 180, altitude


def to_local(fixes: Sequence[Fix], origin: tuple[float, float, float]) -> np.ndarray:
    """(N, 3) metres to the east, to the north and up from `origin`; heights not known are 0."""
    rows = [
        (f.latitude, f.longitude, origin[2] if f.altitude is None else f.altitude) for f in fixes
    ]
    places: Any = np.array(rows, float).reshape(-1, 3)
    return np.asarray(pycolmap.GPSTransform(_WGS84).ellipsoid_to_enu(places, *origin))


def to_earth(xyz: np.ndarray, origin: tuple[float, float, float]) -> np.ndarray:
    """(N, 3) latitudes, longitudes (degrees, WGS 84) and altitudes (m) of points in the frame."""
    local: Any = np.asarray(xyz, float).reshape(-1, 3)
    return np.asarray(pycolmap.GPSTransform(_WGS84).enu_to_ellipsoid(local, *origin))


def locate(
    points: Mapping[str, np.ndarray],
    fixes: Mapping[str, Fix],
    source: str,
    least: int = 5,
    held: tuple[float, float, float] | None = None,
    origin: tuple[float, float, float] | None = None,
) -> tuple[pycolmap.Sim3d, Georeference]:
    """Finds the frame in which positions in the model lie where they are on Earth.

    Args:
        points: (3,) positions in the model, by name.
        fixes: positions on Earth, by name; names that `points` lacks count for nothing.
        source: where they are from.
        least: number of positions that must agree.
        held: origin of the frame that the model is in already and keeps; the residuals are told.
        origin: latitude, longitude and altitude of the frame's origin; None: among the positions.

    Positions count by the accuracy that they tell. Names that share one count as one, which is that
    of the middle of their points.

    Returns:
        The similarity from the model's frame to the local one, the identity if there is none; and
        what was found.
    """
    known = {name: fixes[name] for name in points.keys() & fixes.keys()}
    high = {name: fix for name, fix in known.items() if fix.altitude is not None}
    heights = len(same_places(high)) >= max(least, len(same_places(known)) / 2)
    flat = {name: replace(fix, altitude=None) for name, fix in known.items()}
    known = high if heights else flat
    groups = same_places(known)
    names = [name for group in groups for name in group]
    rough = Georeference(False, source=source, positions=len(names), heights=heights)
    stay = pycolmap.Sim3d()
    if len(groups) < least:
        why = f"there are {len(names)} positions of what is in the model, and {least} are needed"
        if len(groups) < len(names):
            why = (
                f"the {len(names)} positions of what is in the model are in {len(groups)} "
                f"place{'s' if len(groups) > 1 else ''} only, and {least} are needed"
            )
        return stay, _without(rough, why)
    chosen = [known[group[0]] for group in groups]
    latitude, longitude, altitude = middle_of(chosen)
    origin = held or origin or (round(latitude, 6), round(longitude, 6), round(altitude, 1))
    here = np.array([np.mean([points[name] for name in group], axis=0) for group in groups])
    there = to_local(chosen, origin)
    told = [fix.accuracy for fix in chosen if fix.accuracy is not None]
    deviations = np.full(len(groups), 1.0)
    if told:
        deviations = np.array([fix.accuracy or _ORDINARY for fix in chosen])
    if held is not None:
        found = stay
        weights = weights_of(found, here, there, deviations)
    else:
        if float(np.ptp(there, axis=0).max()) < 1e-3:
            return stay, _without(rough, "all of them are one and the same place")
        along, across, _ = np.linalg.svd(here - here.mean(axis=0), compute_uv=False)
        if across < _LINE * along:
            why = "they lie on a line, about which the model could turn"
            return stay, _without(rough, why)
        found, weights = fit_similarity(here, there, deviations)
        good = weights > 0
        if good.sum() < max(least, LEAST_AGREEING * len(groups)):
            why = f"only {int(good.sum())} of the {len(groups)} positions agree with the model"
            return stay, _without(rough, why)
    scale_share, tilt = uncertainty_of(moved(found, here), weights, held is None)
    if held is None and (scale_share > _MAX_SCALE or tilt > _MAX_TILT):
        why = (
            "the positions do not determine the frame: they lie on a line or too close together "
            f"for their errors (scale to {100 * scale_share:.0f} %, direction to {tilt:.0f}°)"
        )
        return stay, _without(rough, why)
    copies = [len(group) for group in groups]
    good = np.repeat(weights > 0, copies)
    residuals = moved(found, np.array([points[name] for name in names]))
    residuals -= np.repeat(there, copies, axis=0)
    if not heights:
        residuals[:, 2] = 0
    lengths = np.linalg.norm(residuals[good], axis=1)
    return found, Georeference(
        True,
        source=source,
        positions=len(names),
        origin=origin,
        heights=heights,
        residuals={n: r.round(4).tolist() for n, r in zip(names, residuals, strict=True)},
        wrong=tuple(n for n, ok in zip(names, good, strict=True) if not ok),
        median=float(np.median(lengths)),
        largest=float(lengths.max()),
        scale=float(found.scale),
        scale_uncertainty=scale_share if heights else None,
        tilt_uncertainty=tilt if heights else None,
        told_accuracy=None if not told else float(np.median(told)),
    )


def _without(rough: Georeference, why: str) -> Georeference:
    return Georeference(
        False, why, source=rough.source, positions=rough.positions, heights=rough.heights
    )


def control_points_in(
    model: pycolmap.Reconstruction, marks: Sequence[Mark], path: Path
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Positions in the model of points that are marked in its photos, by their names.

    Args:
        model: the model.
        marks: of the points; photos may be named as in other lists, see `listed_names`.
        path: of their list, for the error messages.

    Returns:
        (3,) positions of the points that two or more photos show; the names of the others.

    Raises:
        EdmHlocError: none of the marks is in a photo of the model, or one is outside of its photo.
    """
    posed = posed_images(model)
    listed = listed_names({mark.photo for mark in marks}, list(posed))
    photo_of = {text: name for name, text in listed.items()}
    marks = [replace(mark, photo=photo_of.get(mark.photo, mark.photo)) for mark in marks]
    by_point: dict[str, list[Mark]] = {}
    if not any(mark.photo in posed for mark in marks):
        raise EdmHlocError(
            f"{path} marks points in none of the {len(posed)} photos of the model: it names "
            f"{marks[0].photo if marks else 'nothing'}, the first photo is {next(iter(posed), '')}."
        )
    for mark in marks:
        if mark.photo in posed:
            camera = model.cameras[posed[mark.photo].camera_id]
            (x, y), size = mark.xy, (camera.width, camera.height)
            if not (0 <= x <= size[0] and 0 <= y <= size[1]):
                raise EdmHlocError(
                    f"{path}: the pixel ({x - 0.5:g}, {y - 0.5:g}) of {mark.point} is outside of "
                    f"{mark.photo}, which has {size[0]} × {size[1]} pixels: marks are in pixels of "
                    "the photos that the model is of."
                )
        by_point.setdefault(mark.point, []).append(mark)
    found, failed = {}, []
    for point, seen in by_point.items():
        seen = [mark for mark in seen if mark.photo in posed]
        images = [posed[mark.photo] for mark in seen]
        answer = None
        if len(seen) >= 2:
            with quiet_colmap():
                answer = pycolmap.estimate_triangulation(
                    np.array([mark.xy for mark in seen]),
                    [image.cam_from_world() for image in images],
                    [model.cameras[image.camera_id] for image in images],
                )
        if answer is None:
            failed.append(point)
        else:
            found[point] = np.asarray(answer["xyz"])
    return found, failed


# --------------------------------------------------------------------------- files


def write_placed(
    placed: Georeference, models: Mapping[str, pycolmap.Reconstruction], out: Path
) -> None:
    """Writes `georeference.json` and, if a model is on Earth, `cameras.geojson` into `out`.

    Where none is, an older `cameras.geojson` is removed.

    Args:
        placed: where they lie.
        models: the model under the name "", its parts under their numbers.
        out: folder of the files.

    Raises:
        EdmHlocError: a file cannot be written.
    """
    write_whole(out / RECORD, _record_of(placed))
    features = []
    for number, one in {"": placed, **placed.parts}.items():
        if one.origin is not None:
            features += camera_features(models[number], one, number)
    if features:
        collection = {"type": "FeatureCollection", "features": features}
        write_whole(out / CAMERAS, json.dumps(collection, indent=1))
    else:
        (out / CAMERAS).unlink(missing_ok=True)  # of other positions


def _record_of(placed: Georeference) -> str:
    record: dict[str, Any] = asdict(placed)
    for one in (record, *record["parts"].values()):
        if one["origin"] is not None and not one["heights"] and not one["origin"][2]:
            one["origin"] = (*one["origin"][:2], None)  # where 0 stands for what is not known
    frame = "metres to the east, to the north and up from the origin, WGS 84"
    return json.dumps({"frame": frame} | record, indent=1)


def camera_features(
    model: pycolmap.Reconstruction, placed: Georeference, part: str = ""
) -> list[dict[str, Any]]:
    """GeoJSON of a model on Earth: a point for each camera, with the way that it looks.

    Each has the photo's name, the heading of its optical axis in degrees from north over east, its
    elevation above the horizon, the distance from its position in metres, and the number of its
    part.
    """
    assert placed.origin is not None
    features = []
    posed = posed_images(model)
    centres = centres_of(posed.values())
    for (name, image), (lat, lon, alt) in zip(
        posed.items(), to_earth(centres, placed.origin).tolist(), strict=True
    ):
        east, north, up = image.cam_from_world().rotation.matrix()[2]
        properties: dict[str, Any] = {
            "name": name,
            "heading": round(float(np.degrees(np.arctan2(east, north)) % 360), 2),
            "elevation": round(float(np.degrees(np.arcsin(np.clip(up, -1, 1)))), 2),
        }
        if part:
            properties["part"] = int(part)
        if name in placed.residuals:
            off = float(np.linalg.norm(placed.residuals[name]))
            properties |= {"residual": round(off, 3), "wrong": name in placed.wrong}
        place = [round(lon, 9), round(lat, 9), round(alt, 3)]
        geometry = {"type": "Point", "coordinates": place if placed.heights else place[:2]}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return features


def write_on_earth(
    model: pycolmap.Reconstruction, local_from_model: pycolmap.Sim3d, folder: Path
) -> None:
    """Moves a model into the local frame and writes it as the folder's only content.

    Raises:
        EdmHlocError: see `new_model_folder`.
    """
    model.transform(local_from_model)
    with new_model_folder(folder) as temporary:
        model.write_binary(temporary)


def is_on_earth(model: Path) -> bool:
    """Whether a record tells that a model is on Earth, see `place_of`."""
    return place_of(model) is not None


def place_of(model: Path) -> Georeference | None:
    """How a model lies on Earth, by the record beside it, or that of its run; None if it does not.

    What the record tells of single positions and of parts is left out.

    Args:
        model: ``OUT/model``, that of a part, ``OUT/model_parts/2``, or one that `keep_place` has
            written a record for.
    """
    own = _own_record(model)
    out, is_part = run_folder(model)
    try:
        if own.is_file():
            placed = json.loads(own.read_text("utf-8"))
        else:
            placed = json.loads((out / RECORD).read_text("utf-8"))
            placed = placed["parts"][Path(model).absolute().name] if is_part else placed
        if not placed["used"]:
            return None
        return Georeference.of({key: placed[key] for key in _OF_THE_FRAME if key in placed})
    except (OSError, ValueError, LookupError, TypeError):
        return None


def keep_place(model: Path, source: Path) -> None:
    """Records beside a model, as ``MODEL_georeference.json``, that it is in the frame of another.

    Where the other is not on Earth, or one record tells of both, none is written, and an older one
    goes.

    Args:
        model: folder of the model.
        source: that of the model whose frame it has.

    Raises:
        EdmHlocError: the record cannot be written.
    """
    own, placed = _own_record(model), place_of(source)
    if own == _own_record(source):
        return
    try:
        own.unlink(missing_ok=True)
    except OSError as error:
        raise NoRoomError(f"Cannot write {own}: {error.strerror or error}.") from error
    if placed is not None and placed != place_of(model):
        write_whole(own, _record_of(placed))


def _own_record(model: Path) -> Path:
    model = Path(model).absolute()
    return model.with_name(f"{model.name}_{RECORD}")
