"""Reads the folder of a run, finished or not, into one `RunFacts`.

Every part is read separately: a part that is missing or damaged becomes a sentence in
`RunFacts.unfinished` or `RunFacts.problems`, and the rest is shown.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edm_hloc.base.colmap import open_database, posed_images, read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.images.find import no_folder
from edm_hloc.images.intrinsics import parse_camera
from edm_hloc.images.roots import ImageRoot, JoinedFolders
from edm_hloc.localization.log import read_log
from edm_hloc.localization.points import ModelPoints
from edm_hloc.localization.scans import ScanPoints
from edm_hloc.mapping.database_reading import cameras_by_id
from edm_hloc.mapping.georeference import is_on_earth
from edm_hloc.mapping.no_model import explain_no_model
from edm_hloc.pipelines.aachen import AachenDataset
from edm_hloc.pipelines.inloc import InLocDataset
from edm_hloc.pipelines.run_entries import recorded_folder, recorded_for
from edm_hloc.report.facts import Kind, RunFacts
from edm_hloc.report.pair_counts import count_matched_pairs, read_pair_counts
from edm_hloc.report.scene import CameraView, Points, camera_views, image_half_size

_MAX_SCAN_POINTS = 400_000  # a sample of InLoc's scans of about this size stands for a model


def read_record(out: Path) -> dict[str, Any]:
    """The content of run.json.

    Raises:
        EdmHlocError: the folder holds no run, or its record is damaged.
    """
    path = Path(out) / "run.json"
    try:
        record = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise EdmHlocError(
            f"No run in {out}: there is no run.json. Give the output folder of a command such as "
            "edm-hloc reconstruct; pictures of any COLMAP model are made by edm-hloc show."
        ) from None
    except OSError as error:
        raise EdmHlocError(
            f"Cannot read the run's record {path}: {error.strerror or error}."
        ) from error
    except (ValueError, RecursionError) as error:
        raise EdmHlocError(f"Cannot read the run's record {path}: {error}.") from error
    parts = [record.get("settings"), record.get("results", {})] if isinstance(record, dict) else []
    if not parts or not all(isinstance(part, dict) for part in parts):
        raise EdmHlocError(f"{path} is not the record of a run.")
    return record


def is_recorded(out: Path, error: EdmHlocError) -> bool:
    """Whether run.json in `out` has this error; it has not if the arguments were refused."""
    try:
        return bool(read_record(out).get("error") == str(error))
    except EdmHlocError:
        return False


def photos_of_model(model: Path) -> Path | None:
    """The folder of a model's photos, as the run in whose folder the model is names it, or None.

    Args:
        model: ``OUT/model``, or that of a part, ``OUT/model_parts/2``.
    """
    try:
        return recorded_for(model, "images")
    except EdmHlocError:
        return None


def collect(out: Path, images: Path | None = None) -> RunFacts:
    """Reads a run.

    Args:
        out: output folder of the run.
        images: folder of its photos, if they have moved; of a localization, a folder with the
            folders "query" and "database", or that of the queries and the model's photos in one.

    Raises:
        EdmHlocError: `out` holds no run, or there is no folder `images`.
    """
    out = Path(out)
    record = read_record(out)
    facts = RunFacts(out, record, _kind(record["settings"]))
    facts.dataset = _dataset(facts)
    facts.image_root = _image_root(facts, images)
    with facts.noting_errors("Skipped photos"):
        for step in ("matching", "imported", "retrieval"):
            facts.skipped |= facts.results.get(step, {}).get("skipped", {})
    with facts.noting_errors("Model"):
        _read_model(facts)
    with facts.noting_errors("Cameras"):
        _read_database(facts)
    with facts.noting_errors("Queries"):
        _read_queries(facts)
    with facts.noting_errors("Pairs"):
        read_pair_counts(facts)
    _set_status(facts)
    return facts


def _kind(settings: dict[str, Any]) -> Kind:
    if "queries" in settings or "dataset" in settings:
        return "localization"
    if "reference" in settings:
        return "triangulation"
    return "reconstruction" if "mapping" in settings else "matching"


def _dataset(facts: RunFacts) -> str:
    if "dataset" not in facts.settings:
        return ""
    return "Aachen Day-Night v1.1" if "covisible" in facts.settings["options"] else "InLoc"


def _image_root(facts: RunFacts, images: Path | None) -> ImageRoot | None:
    settings = facts.settings
    root: ImageRoot
    if images is not None:
        if not images.is_dir():
            raise EdmHlocError(no_folder(images))
        if "queries" not in settings:
            return images
        parts = {part: images / part for part in ("query", "database")}
        return JoinedFolders({p: f if f.is_dir() else images for p, f in parts.items()})
    if "queries" in settings:
        parts = {"query": _folder(facts, "queries"), "database": _folder(facts, "images")}
        folders = [*parts.values()]
        root = JoinedFolders(parts)
    else:
        root = _folder(facts, "dataset" if facts.dataset else "images")
        if facts.dataset and facts.dataset != "InLoc":
            root = AachenDataset(root).images
        folders = [root]
    gone = [folder for folder in folders if not folder.is_dir()]
    if gone:
        facts.problems.append(
            f"Photos: there is no folder {gone[0]}, so its photos are not shown. If they have "
            "moved, give their folder: edm-hloc report OUT --images FOLDER."
        )
    return root if len(gone) < len(folders) else None


def _folder(facts: RunFacts, name: str) -> Path:
    """A folder of the settings; where they are damaged and name none, one that is not there."""
    return recorded_folder(facts.out, facts.record, name) or facts.out / name


# --------------------------------------------------------------------------- model and queries


def _read_model(facts: RunFacts) -> None:
    if facts.dataset == "InLoc":
        _read_scans(facts)
        return
    prefix, kind = "", "registered"
    if facts.kind == "localization":
        kind = "database"
        if facts.dataset:
            folder = facts.out / "sfm" / "model"
            if not folder.is_dir():
                facts.unfinished.append("The model of the database has no points yet.")
                return
        else:
            folder, prefix = _folder(facts, "model"), "database/"
        source = ModelPoints(folder, prefix)
        recorded = facts.results.get("model_poses")
        if recorded not in (None, source.fingerprint_of_poses()):
            raise EdmHlocError(
                f"{folder} has other poses than the model in which these photos were localized: "
                "localize them again, by the same command."
            )
        model, facts.point_source = source.model, source
    else:
        folder = facts.out / "model"
        if facts.kind == "matching" or not folder.is_dir():
            return
        model = read_model(folder)
    facts.on_earth = is_on_earth(folder)
    facts.points = Points.of(model)
    facts.views = [replace(v, name=prefix + v.name) for v in camera_views(model, kind)]
    for name, image in posed_images(model).items():
        seen = {keypoint.point3D_id for keypoint in image.get_observation_points2D()}
        facts.registered[prefix + name] = len(seen)
        camera = facts.cameras[prefix + name] = model.cameras[image.camera_id]
        if facts.kind != "localization":
            facts.sizes[name] = camera.width, camera.height


def _read_database(facts: RunFacts) -> None:
    database = facts.out / "database.db"
    if facts.kind == "localization" or not database.is_file():
        return
    with open_database(database) as opened:
        cameras = cameras_by_id(opened)
        images = opened.read_all_images()
    for image in images:
        camera = cameras[image.camera_id]
        facts.sizes[image.name] = camera.width, camera.height
    for number, camera in cameras.items():
        if facts.kind == "reconstruction" and camera.has_prior_focal_length:
            facts.prior_focal_lengths[number] = camera.mean_focal_length()


def _read_scans(facts: RunFacts) -> None:
    """Takes a sample of the scan points that have matches, since InLoc has no COLMAP model."""
    folder = facts.out / "scan_points"
    files = sorted(folder.rglob("[!.]*.npy"))
    each = _MAX_SCAN_POINTS // max(1, len(files))
    found = []
    for path in files:
        points = np.load(path, allow_pickle=False)
        points = points[np.isfinite(points).all(axis=1)]
        found.append(points[:: max(1, -(-len(points) // max(1, each)))])
    xyz = np.concatenate([np.zeros((0, 3)), *found])
    grey = np.full((len(xyz), 3), 150, np.uint8)
    facts.points = Points(xyz, grey, np.ones(len(xyz), np.int64), np.full(len(xyz), np.nan))
    data = InLocDataset(_folder(facts, "dataset"))
    facts.point_source = ScanPoints(data.root, folder, data.database())


def _read_queries(facts: RunFacts) -> None:
    if facts.kind != "localization":
        return
    settings = facts.settings
    options = settings.get("pose") or settings.get("options", {}).get("pose", {})
    facts.min_inliers = int(options.get("min_inliers", 10))
    log = facts.out / "queries.jsonl"
    if log.is_file():
        facts.queries = read_log(log)
    for answer in facts.queries:
        if answer.pose is not None and answer.status == "localized":
            camera = parse_camera(answer.camera.split(), f"{log}, {answer.query}")
            facts.cameras[answer.query] = camera
            facts.sizes[answer.query] = camera.width, camera.height
            view = CameraView(
                answer.query, answer.pose, image_half_size(camera), f"query-{answer.confidence}"
            )
            facts.views.append(view)


# --------------------------------------------------------------------------- status


def _set_status(facts: RunFacts) -> None:
    """Decides whether the run is complete, unfinished or failed, and what is missing."""
    done = facts.record.get("done", {})
    facts.error = str(facts.record.get("error", ""))
    if not facts.listed:
        facts.unfinished.append("Nothing was matched yet.")
    else:
        with facts.noting_errors("Raw matches"):
            skipped = int(facts.results.get("matching", {}).get("skipped_pairs", 0))
            matched, expected = count_matched_pairs(facts), facts.listed - skipped
            if matched is None:  # once keypoints are made of all, they may be deleted
                matched = expected if "keypoints" in done else len(facts.pairs)
            if matched < expected:
                facts.unfinished.append(f"{matched:,} of {expected:,} pairs are matched.")
    if facts.kind == "localization":
        expected_queries = facts.results.get("localized", {}).get("queries")
        number = len(facts.queries)
        if expected_queries is None or number < expected_queries:
            facts.unfinished.append(
                f"{number} queries have been processed."
                if number
                else "No query has been processed yet."
            )
    else:
        steps = {
            "keypoints": "Keypoints were not made from the matches yet.",
            "database": "The matches were not verified yet.",
            "model": "There is no model yet.",
        }
        if facts.kind == "matching":
            steps = {"keypoints": steps["keypoints"]}
        elif facts.kind == "triangulation":
            steps.pop("database")
        facts.unfinished += [text for step, text in steps.items() if step not in done]
    if facts.error:
        facts.status = "failed"
    elif facts.unfinished:
        facts.status = "unfinished"
        if facts.kind == "reconstruction" and "database" in done and "model" not in done:
            with facts.noting_errors("Database"):
                if not (facts.inliers > 0).any():
                    facts.error = explain_no_model(facts.out / "database.db")
                    facts.status = "failed"
