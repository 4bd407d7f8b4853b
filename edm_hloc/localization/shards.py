"""Queries that other processes localize: what they are told, and what they answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edm_hloc.base.colmap import camera_from_json, camera_to_json
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.localization.log import format_pose
from edm_hloc.localization.pnp import PoseOptions
from edm_hloc.localization.points import ModelPoints, PointSource
from edm_hloc.localization.queries import Queries, localize_queries
from edm_hloc.localization.scans import ScanPoints


@dataclass(frozen=True)
class QueryFiles:
    """Where the keypoints, matches and points of queries are.

    Attributes:
        features, matches, points: as for `localize_queries`.
    """

    features: Path
    matches: Path
    points: PointSource

    def to_json(self, options: PoseOptions) -> dict[str, Any]:
        """What every shard is told, in values that JSON knows.

        Raises:
            EdmHlocError: the points are of a script's own kind.
        """
        points: dict[str, Any]
        if isinstance(self.points, ModelPoints):
            root = self.points.image_root
            points = {
                "model": str(self.points.folder.resolve()),
                "prefix": self.points.prefix,
                "images": None if root is None else str(root.resolve()),
            }
        elif isinstance(self.points, ScanPoints):
            dataset, folder = self.points.dataset.resolve(), self.points.folder.resolve()
            points = {"scans": str(folder), "dataset": str(dataset), "names": self.points.names()}
        else:
            raise EdmHlocError(
                "Other processes can localize queries against a model or laser scans only."
            )
        return {
            "features": str(self.features.resolve()),
            "matches": str(self.matches.resolve()),
            "points": points,
            "options": asdict(replace(options, threads=-1)),
        }


def query_items(queries: Queries, names: Sequence[str]) -> list[list[Any]]:
    """What is told of each of some queries: its name, and the rest as an object for JSON."""
    return [
        [
            name,
            {
                "camera": camera_to_json(queries.cameras[name])
                if name in queries.cameras
                else None,
                "retrieved": list(queries.retrieved.get(name, ())),
                "problem": queries.problems.get(name),
                "uncalibrated": name in queries.uncalibrated,
                "perhaps": [camera_to_json(camera) for camera in queries.perhaps.get(name, ())],
                "photo": str(queries.photos[name].resolve()) if name in queries.photos else None,
            },
        ]
        for name in names
    ]


def folders_needed(shared: Mapping[str, Any]) -> list[Path]:
    """The files and folders that every query needs.

    Args:
        shared: of `QueryFiles.to_json`.
    """
    points = shared["points"]
    places = [shared["features"], shared["matches"]]
    places += [points.get(key) for key in ("model", "images", "scans", "dataset")]
    return [Path(place) for place in places if place is not None]


def localize_items(
    shared: Mapping[str, Any], items: Sequence[Sequence[Any]], log: Path
) -> Iterator[tuple[str, bytes]]:
    """Localizes the queries of `query_items`: the name of each, and its line of a log.

    Args:
        shared: of `QueryFiles.to_json`.
        items: of the queries.
        log: from which an interrupted call goes on.

    Raises:
        EdmHlocError: as `localize_queries`.
    """
    told: dict[str, dict[str, Any]] = dict(tuple(item) for item in items)
    queries = Queries(
        list(told),
        {name: camera_from_json(t["camera"]) for name, t in told.items() if t["camera"]},
        {name: t["retrieved"] for name, t in told.items()},
        {name: t["problem"] for name, t in told.items() if t["problem"]},
        [name for name, t in told.items() if t["uncalibrated"]],
        {name: Path(t["photo"]) for name, t in told.items() if t["photo"]},
        {
            name: [camera_from_json(camera) for camera in t["perhaps"]]
            for name, t in told.items()
            if t.get("perhaps")
        },
    )
    place = dict(shared["points"])
    points: PointSource
    if "scans" in place:
        points = ScanPoints(Path(place["dataset"]), Path(place["scans"]), place["names"])
    else:
        images = None if place["images"] is None else Path(place["images"])
        points = ModelPoints(Path(place["model"]), place["prefix"], images)
    answers = localize_queries(
        queries,
        Path(shared["features"]),
        Path(shared["matches"]),
        points,
        log,
        PoseOptions(**shared["options"]),
    )
    for answer in answers:
        yield answer.query, format_pose(answer).encode()
