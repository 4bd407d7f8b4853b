"""What a run left in its folder, finished or not: read into one record, nothing left out silently.

Every part is read on its own: what is missing or damaged becomes a line in `problems`, and the rest
is shown.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pycolmap

from edm_hloc.base.colmap import posed_images, read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.frames import to_colmap
from edm_hloc.images.find import image_stamps
from edm_hloc.images.intrinsics import parse_camera
from edm_hloc.keypoints.h5 import FeatureReader, MatchReader
from edm_hloc.localization.log import read_log
from edm_hloc.localization.points import ModelPoints, PointSource
from edm_hloc.localization.results import QueryPose
from edm_hloc.localization.scans import ScanPoints
from edm_hloc.mapping.no_model import explain_no_model
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.pairs.files import read_pairs
from edm_hloc.pairs.rules import Pair
from edm_hloc.pipelines.aachen import AachenDataset
from edm_hloc.pipelines.inloc import InLocDataset
from edm_hloc.report.scene import Points, View, picture_size, views_of

logger = logging.getLogger(__name__)

Kind = Literal["reconstruction", "triangulation", "matching", "localization"]
Status = Literal["complete", "unfinished", "failed"]

_SCAN_POINTS = 400_000  # of InLoc's scans, for the model


class PairMatches(NamedTuple):
    """The matches of one pair that can be drawn.

    Attributes:
        points0, points1: (M, 2) pixels of the original photos, hloc's frame.
        scores: (M,) in [0, 1].
        inliers: (M,) bool: agrees with the pair's geometry or the query's pose; None if unverified.
    """

    points0: np.ndarray
    points1: np.ndarray
    scores: np.ndarray
    inliers: np.ndarray | None


@dataclass
class RunFacts:
    """All that is known of a run.

    Attributes:
        out: its folder.
        record: run.json.
        kind: what the run is.
        dataset: name of the benchmark, or nothing.
        status: "failed" where an error was recorded.
        error: that error, or why there is no model.
        unfinished: what is missing, a sentence each.
        problems: what could not be read for this report.
        image_root: folder of the photos, if it is there.
        names: photos in the run, sorted; queries first.
        skipped: photos left out, with the reason.
        pairs: (P, 2) indices into `names`, of the pairs that were matched.
        matches: (P,) their matches.
        inliers: (P,) those that were verified, −1 where nothing was.
        listed: pairs the run was asked for.
        points, views: of the model.
        registered: posed images of the model by name, with the number of their 3D points.
        min_inliers: that a pair, or a query, needs to count.
        queries: answers of a localization.
        cameras: photos with their camera of the model.
    """

    out: Path
    record: dict[str, Any]
    kind: Kind
    dataset: str = ""
    status: Status = "complete"
    error: str = ""
    unfinished: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    image_root: Path | None = None
    names: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    pairs: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    matches: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    inliers: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    listed: int = 0
    points: Points = field(default_factory=Points.none)
    views: list[View] = field(default_factory=list)
    registered: dict[str, int] = field(default_factory=dict)
    min_inliers: int = 15
    queries: list[QueryPose] = field(default_factory=list)
    cameras: dict[str, pycolmap.Camera] = field(default_factory=dict)
    _source: PointSource | None = None

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.record.get("settings", {}))

    @property
    def results(self) -> dict[str, Any]:
        return dict(self.record.get("results", {}))

    @property
    def verified(self) -> bool:
        """Whether the matches were checked against a geometry."""
        return bool((self.inliers >= 0).any())

    @contextmanager
    def tolerant(self, what: str) -> Iterator[None]:
        """Notes an error of the block instead of raising it."""
        try:
            yield
        except EdmHlocError as error:
            self._note(f"{what}: {error}")
        except Exception as error:  # a report is made of whatever can be read
            logger.debug("While reading %s", what, exc_info=True)
            self._note(f"{what}: {type(error).__name__}: {error}")

    def _note(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)


# --------------------------------------------------------------------------- the run


def read_record(out: Path) -> dict[str, Any]:
    """The run's record.

    Raises:
        EdmHlocError: there is no run in the folder, or its record is damaged.
    """
    path = Path(out) / "run.json"
    try:
        record = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise EdmHlocError(
            f"No run in {out}: there is no run.json. Give the output folder of a command such as "
            "edm-hloc reconstruct; pictures of any COLMAP model are made by edm-hloc show."
        ) from None
    except (OSError, ValueError) as error:
        raise EdmHlocError(f"Cannot read the run's record {path}: {error}.") from error
    parts = [record.get("settings"), record.get("results", {})] if isinstance(record, dict) else []
    if not parts or not all(isinstance(part, dict) for part in parts):
        raise EdmHlocError(f"{path} is not the record of a run.")
    return record


def collect(out: Path, images: Path | None = None) -> RunFacts:
    """Reads a run.

    Args:
        out: the run's folder.
        images: folder of its photos, if they have moved.

    Raises:
        EdmHlocError: there is no run in `out`.
    """
    out = Path(out)
    record = read_record(out)
    facts = RunFacts(out, record, _kind(record["settings"]))
    facts.dataset = _dataset(facts)
    facts.image_root = _image_root(facts, images)
    with facts.tolerant("Skipped photos"):
        for step in ("matching", "imported"):
            facts.skipped |= facts.results.get(step, {}).get("skipped", {})
    with facts.tolerant("Model"):
        _read_model(facts)
    with facts.tolerant("Answers"):
        _read_queries(facts)
    with facts.tolerant("Pairs"):
        _read_pairs(facts)
    _judge(facts)
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


def _image_root(facts: RunFacts, images: Path | None) -> Path | None:
    if images is not None:
        if not images.is_dir():
            raise EdmHlocError(f"No such folder of images: {images}. Check the path.")
        return images
    settings = facts.settings
    if "queries" in settings:
        root = facts.out / "images"
    elif "dataset" in settings:
        root = Path(settings["dataset"])
        if facts.dataset != "InLoc":
            root = AachenDataset(root).images
    else:
        root = Path(settings.get("images", ""))
    if root.is_dir():
        return root
    facts.problems.append(
        f"Photos: there is no folder {root} here, so that none are shown. Run the command where "
        "the run was started, or say where they are: edm-hloc report OUT --images FOLDER."
    )
    return None


# --------------------------------------------------------------------------- model and answers


def _read_model(facts: RunFacts) -> None:
    settings = facts.settings
    prefix, kind = "", "registered"
    if facts.kind == "localization":
        kind = "database"
        if facts.dataset == "InLoc":
            _read_scans(facts)
            return
        if facts.dataset:
            folder = facts.out / "sfm" / "model"
            if not folder.is_dir():
                facts.unfinished.append("The model of the database has no points yet.")
                return
        else:
            folder, prefix = Path(settings["model"]), "database/"
        source = ModelPoints(folder, prefix)
        model, facts._source = source.model, source
    else:
        folder = facts.out / "model"
        if facts.kind == "matching" or not folder.is_dir():
            return
        model = read_model(folder)
    facts.points = Points.of(model)
    views = views_of(model, kind)
    facts.views = [View(prefix + v.name, v.cam_from_world, v.size, v.kind) for v in views]
    for name, image in posed_images(model).items():
        facts.registered[prefix + name] = image.num_points3D
        facts.cameras[prefix + name] = model.cameras[image.camera_id]


def _read_scans(facts: RunFacts) -> None:
    """The points of scans that the matches hang on stand for a model."""
    folder = facts.out / "scan_points"
    files = sorted(folder.rglob("*.npy"))
    each = _SCAN_POINTS // max(1, len(files))
    found = []
    for path in files:
        points = np.load(path, allow_pickle=False)
        points = points[np.isfinite(points).all(axis=1)]
        found.append(points[:: max(1, -(-len(points) // max(1, each)))])
    xyz = np.concatenate([np.zeros((0, 3)), *found])
    grey = np.full((len(xyz), 3), 150, np.uint8)
    facts.points = Points(xyz, grey, np.ones(len(xyz), np.int64), np.full(len(xyz), np.nan))
    data = InLocDataset(Path(facts.settings["dataset"]))
    facts._source = ScanPoints(data.root, folder, data.database())


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
            kind = f"query-{answer.confidence}"
            facts.views.append(View(answer.query, answer.pose, picture_size(camera), kind))


# --------------------------------------------------------------------------- pairs


def _read_pairs(facts: RunFacts) -> None:
    listed: list[Pair] = []
    path = facts.out / "pairs.txt"
    if path.is_file():
        listed = read_pairs(path)
    facts.listed = len({frozenset(pair) for pair in listed})
    names = dict.fromkeys(answer.query for answer in facts.queries)
    in_pairs = {name for pair in listed for name in pair}
    if facts.kind == "localization":
        first = sorted({pair[0] for pair in listed} | set(names))
        rest = sorted(in_pairs - set(first))
    else:
        first, rest = sorted(in_pairs | set(facts.registered)), []
    facts.names = [*first, *rest]

    found: _Counts = []
    for count in (_count_verified, _count_answers, _count_matches, _count_raw):
        with facts.tolerant("Pairs"):
            found = count(facts, listed)
        if found:
            break
    index = {name: i for i, name in enumerate(facts.names)}
    rows = [
        (index[a], index[b], m, n) for a, b, m, n in found if a in index and b in index and a != b
    ]
    table = np.array(rows, np.int64).reshape(-1, 4)
    facts.pairs, facts.matches, facts.inliers = table[:, :2], table[:, 2], table[:, 3]


_Counts = list[tuple[str, str, int, int]]


def _count_verified(facts: RunFacts, listed: Sequence[Pair]) -> _Counts:
    """From the COLMAP database."""
    path = facts.out / "database.db"
    if facts.kind == "localization" or not path.is_file():
        return []
    facts.min_inliers = int(facts.settings.get("mapping", {}).get("min_inliers", 15))
    database = pycolmap.Database.open(path)
    try:
        names = {image.image_id: image.name for image in database.read_all_images()}
        inliers = dict(zip(*database.read_two_view_geometry_num_inliers(), strict=True))
        matches = dict(zip(*database.read_num_matches(), strict=True))
    finally:
        database.close()
    counts = []
    for pair_id, number in matches.items():
        a, b = pycolmap.pair_id_to_image_pair(pair_id)
        if a in names and b in names:
            counts.append((names[a], names[b], int(number), int(inliers.get(pair_id, 0))))
    return counts


def _count_answers(facts: RunFacts, listed: Sequence[Pair]) -> _Counts:
    """From the answers of a localization, whose inliers are those of the query's pose."""
    if not facts.queries:
        return []
    inliers_of = {answer.query: answer.inliers_of for answer in facts.queries}
    counts = _count_matches(facts, [pair for pair in listed if pair[0] in inliers_of])
    return [(a, b, m, inliers_of[a].get(b, 0)) for a, b, m, _ in counts]


def _count_matches(facts: RunFacts, listed: Sequence[Pair]) -> _Counts:
    path = facts.out / "matches.h5"
    if not path.is_file():
        return []
    with MatchReader(path) as reader:
        return [(a, b, len(reader.matches(a, b)[0]), -1) for a, b in listed if (a, b) in reader]


def _count_raw(facts: RunFacts, listed: Sequence[Pair]) -> _Counts:
    folder = facts.out / "raw_matches"
    if not folder.is_dir() or not any(folder.glob("*.h5")):
        return []
    with RawMatchReader(folder) as reader:
        return [(a, b, len(reader.read(a, b).scores), -1) for a, b in listed if (a, b) in reader]


class PairSource:
    """Reads the matches of single pairs; use it in a ``with`` block."""

    def __init__(self, facts: RunFacts) -> None:
        self._facts = facts
        self._answers = {answer.query: answer for answer in facts.queries}
        self._ids: dict[str, int] = {}
        self._model_features: FeatureReader | None = None

    def __enter__(self) -> PairSource:
        self._stack, out = ExitStack(), self._facts.out
        self._features = self._matches = self._raw = self._database = None
        enter = self._stack.enter_context
        for path in (out / "model-keypoints.h5", out / "sfm" / "features.h5"):
            with self._facts.tolerant("Keypoints of the model"):
                if path.is_file():
                    self._model_features = enter(FeatureReader(path))
        with self._facts.tolerant("Keypoints"):
            if (out / "matches.h5").is_file() and (out / "features.h5").is_file():
                self._features = enter(FeatureReader(out / "features.h5"))
                self._matches = enter(MatchReader(out / "matches.h5"))
        if (out / "raw_matches").is_dir() and any((out / "raw_matches").glob("*.h5")):
            self._raw = enter(RawMatchReader(out / "raw_matches"))
        if self._facts.kind != "localization" and (out / "database.db").is_file():
            self._database = pycolmap.Database.open(out / "database.db")
            self._stack.callback(self._database.close)
            self._ids = {i.name: i.image_id for i in self._database.read_all_images()}
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def keypoints(self, name: str) -> np.ndarray:
        """(N, 2) of a photo, hloc's frame; of a photo without a file those of its model."""
        for features in (self._features, self._model_features):
            if features is not None and name in features:
                return np.asarray(features.keypoints(name), np.float64)
        source = self._facts._source
        if isinstance(source, ModelPoints) and name in source:
            return source.keypoints(name)
        return np.zeros((0, 2))

    def read(self, name0: str, name1: str) -> PairMatches | None:
        """The matches of a pair, or None where nothing is known of it."""
        matches = self._matches
        if matches is not None and (name0, name1) in matches:
            index, scores = matches.matches(name0, name1)
            keypoints = self.keypoints(name0), self.keypoints(name1)
            if len(index) and any(index[:, side].max() >= len(keypoints[side]) for side in (0, 1)):
                return None
            points0, points1 = (keypoints[side][index[:, side]] for side in (0, 1))
            inliers = self._inliers(name0, name1, index, points0)
            return PairMatches(points0, points1, scores, inliers)
        if self._raw is not None and (name0, name1) in self._raw:
            raw = self._raw.read(name0, name1)
            return PairMatches(raw.keypoints0, raw.keypoints1, raw.scores, None)
        return None

    def _inliers(
        self, name0: str, name1: str, index: np.ndarray, points0: np.ndarray
    ) -> np.ndarray | None:
        if name0 in self._answers:
            return self._agree_with_pose(self._answers[name0], name1, index, points0)
        if self._database is None or not {name0, name1} <= self._ids.keys():
            return None
        geometry = self._database.read_two_view_geometry(self._ids[name0], self._ids[name1])
        if geometry is None:
            return np.zeros(len(index), bool)
        found = {(int(a), int(b)) for a, b in geometry.inlier_matches}
        return np.array([(int(a), int(b)) in found for a, b in index], bool)

    def _agree_with_pose(
        self, answer: QueryPose, image: str, index: np.ndarray, points0: np.ndarray
    ) -> np.ndarray | None:
        source, pose = self._facts._source, answer.pose
        if source is None or image not in source:
            return None
        agree = np.zeros(len(index), bool)
        if answer.status != "localized" or pose is None:
            return agree
        settings = self._facts.settings
        options = settings.get("pose") or settings["options"]["pose"]
        world = source.points(image)[index[:, 1]]
        known = np.isfinite(world).all(axis=1)
        camera = self._facts.cameras[answer.query]
        seen = np.asarray(camera.img_from_cam(pose * world[known])).reshape(-1, 2)
        error = np.linalg.norm(seen - to_colmap(points0.astype(np.float32))[known], axis=1)
        agree[known] = error <= options["max_error"]
        return agree


# --------------------------------------------------------------------------- verdict


def _judge(facts: RunFacts) -> None:
    """Finished, unfinished or failed, and what is missing."""
    done, results = facts.record.get("done", {}), facts.results
    facts.error = str(facts.record.get("error", ""))
    expected = facts.listed - _pairs_of_skipped(facts)
    if not facts.listed:
        facts.unfinished.append("Nothing was matched yet.")
    else:
        with facts.tolerant("Raw matches"):
            matched = _matched_pairs(facts)
            if matched < expected:
                facts.unfinished.append(f"{matched:,} of {expected:,} pairs are matched.")
    if facts.kind == "localization":
        expected_queries = results.get("localized", {}).get("queries")
        number = len(facts.queries)
        if expected_queries is None or number < expected_queries:
            facts.unfinished.append(
                f"{number} queries have an answer." if number else "No query has an answer yet."
            )
    else:
        steps = {
            "keypoints": "Keypoints were not made of the matches yet.",
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
            with facts.tolerant("Database"):
                if not (facts.inliers > 0).any():
                    facts.error = explain_no_model(facts.out / "database.db")
                    facts.status = "failed"


def _pairs_of_skipped(facts: RunFacts) -> int:
    return int(facts.results.get("matching", {}).get("skipped_pairs", 0))


def _matched_pairs(facts: RunFacts) -> int:
    folder = facts.out / "raw_matches"
    if folder.is_dir() and any(folder.glob("*.h5")):
        listed = {frozenset(pair) for pair in read_pairs(facts.out / "pairs.txt")}
        with RawMatchReader(folder) as reader:
            return len(listed & {frozenset(pair) for pair in reader.pairs()})
    return len(facts.pairs)  # the raw matches may have been deleted to save space


def original(facts: RunFacts, name: str) -> Path | None:
    """The file of a photo, if it is there."""
    if facts.image_root is None or not image_stamps(facts.image_root, [name]):
        return None
    return facts.image_root / name
