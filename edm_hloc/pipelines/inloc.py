"""InLoc, from the dataset's folder to a submission for visuallocalization.net.

The 3D points are those of the dataset's laser scans. The defaults are the published settings
(hloc's), but for the keypoints. In the output folder, beside the files of
`edm_hloc.pipelines.localize`:

    scan_points/NAME.npy   (N, 3) world coordinates of a cutout's keypoints, NaN where unknown
    InLoc_*.txt            the submission
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import pycolmap

from edm_hloc.base.errors import EdmHlocError, ImageError, raise_any
from edm_hloc.images.exif import read_header
from edm_hloc.images.find import find_images
from edm_hloc.keypoints.quantization import QuantizationConfig
from edm_hloc.localization.pnp import PoseOptions
from edm_hloc.localization.poses import check_basenames
from edm_hloc.localization.queries import Queries
from edm_hloc.localization.results import QueryPose
from edm_hloc.localization.scans import ScanPoints, check_scan, write_scan_points
from edm_hloc.matchers.base import Matcher
from edm_hloc.matching.engine import MatchingConfig
from edm_hloc.pairs.descriptors import RetrievalImages
from edm_hloc.pairs.retrieval import RetrievalOptions, check_retrieval
from edm_hloc.pipelines.localize import POSES_FILES, find_poses, set_poses_aside, write_submission
from edm_hloc.pipelines.matching import MATCHING_FILES, PairsToMatch, match_and_quantize
from edm_hloc.pipelines.retrieval import retrieve
from edm_hloc.pipelines.run import Run

SOURCE = (
    "The dataset is at https://data.ciirc.cvut.cz/public/projects/2020VisualLocalization/InLoc/ "
    "(see https://www.visuallocalization.net/datasets)."
)
QUERY_FOCAL = 28 / 36  # focal length over a query's longer side: 28 mm, on film 36 mm wide


@dataclass(frozen=True)
class InLocOptions:
    """Settings of `localize_inloc`.

    Attributes:
        retrieval: database images that each query is matched with.
        quantization: how matched points are merged into keypoints, of all images. A scan has a 3D
            point for every pixel, so that they need not be merged farther than within a pixel.
        pose: thresholds of the pose estimation. The 48 px are hloc's, for queries of
            4,032 px.
    """

    retrieval: RetrievalOptions = field(default_factory=lambda: RetrievalOptions(number=40))
    quantization: QuantizationConfig = field(
        default_factory=lambda: QuantizationConfig(
            max_error=1.0, cell_size=1.0, max_kps=None, position="mean"
        )
    )
    pose: PoseOptions = field(default_factory=lambda: PoseOptions(max_error=48.0, min_matches=20))


@dataclass(frozen=True)
class InLocDataset:
    """The dataset's folder and what is in it.

    Attributes:
        root: folder of the dataset, with database and query.
    """

    root: Path

    def queries(self) -> list[str]:
        """Names of the queries, relative to `root`.

        Raises:
            EdmHlocError: there are none, or two have the same name without folders.
        """
        found = find_images(self.root / "query" / "iphone7")
        check_basenames(found)
        return [f"query/iphone7/{name}" for name in found]

    def database(self) -> list[str]:
        """Names of the cutouts, relative to `root`."""
        cutouts = self.root / "database" / "cutouts"
        return [f"database/cutouts/{name}" for name in find_images(cutouts)]

    def problems(self) -> list[str]:
        """Parts of the dataset that are missing, each with where to get it; none if complete."""
        if not self.root.is_dir():
            return [
                f"No such folder: {self.root}. Give the folder of InLoc, with database and query "
                f"in it. {SOURCE}"
            ]
        needed = {
            "query/iphone7": "queries/iphone7.tar.gz",
            "database/cutouts": "cutouts.tar.gz",
            "database/alignments": "the alignments",
        }
        found = [
            f"{self.root / folder}/ is missing: unpack {archive} there."
            for folder, archive in needed.items()
            if not (self.root / folder).is_dir()
        ]
        return [*found, SOURCE] if found else []

    def unusable_files(self) -> list[str]:
        """A line for each query whose header cannot be read, and for each cutout whose scan or
        alignment is missing, or whose scan is not of its shape.

        Raises:
            EdmHlocError: there are no queries or no cutouts, see `queries`.
        """
        found = []
        for name in self.queries():
            try:
                read_header(self.root / name)
            except ImageError as error:
                found.append(str(error))
        for name in self.database():
            try:
                check_scan(self.root, name)
            except EdmHlocError as error:
                found.append(f"{name}: {error}")
        return found


def query_camera(width: int, height: int) -> pycolmap.Camera:
    """The camera of a query of this size: a focal length of 4032 · 28/36 px at 4032 × 3024 px."""
    focal = max(width, height) * QUERY_FOCAL
    params = [focal, width / 2, height / 2]
    camera = pycolmap.Camera(model="SIMPLE_PINHOLE", width=width, height=height, params=params)
    camera.has_prior_focal_length = True
    return camera


def localize_inloc(
    dataset: Path,
    out: Path,
    matcher: Matcher,
    options: InLocOptions | None = None,
    matching: MatchingConfig | None = None,
    *,
    overwrite: bool = False,
) -> tuple[Run, list[QueryPose], Path]:
    """Localizes all queries of the dataset.

    Arguments, results and errors are those of `aachen.localize_aachen`; a cutout whose scan is
    missing raises nothing, and counts for no query.
    """
    options, matching = options or InLocOptions(), matching or MatchingConfig()
    data = InLocDataset(Path(dataset))
    raise_any(data.problems())
    names, database = data.queries(), data.database()
    check_retrieval(options.retrieval, names, database)
    settings = {
        "command": "inloc",
        "dataset": str(data.root.resolve()),
        "options": asdict(options),
    }
    files = (*MATCHING_FILES, *POSES_FILES, "scan_points")
    with Run.begin(
        out, settings, matcher, files, overwrite=overwrite, shards=matching.shards
    ) as run:
        label = f"{options.retrieval.label}{options.retrieval.number}"
        submission = out / f"InLoc_{matcher.info.name}_{label}.txt"
        set_poses_aside(run, submission.name)
        cameras, unusable = {}, {}
        for name in names:
            try:
                cameras[name] = query_camera(*read_header(data.root / name).size)
            except ImageError as error:
                unusable[name] = str(error)
        images = RetrievalImages(data.root, names, database)
        retrieved = retrieve(run, options.retrieval, images, matcher)
        queries = Queries(names, cameras, retrieved, unusable)
        match_and_quantize(
            run,
            PairsToMatch(data.root, queries.pairs()),
            matcher,
            options.quantization,
            matching,
            overwrite=overwrite,
        )
        used = sorted({image for _, image in queries.pairs()}.intersection(database))
        folder = out / "scan_points"
        run.claim(folder.name)
        missing = write_scan_points(data.root, out / "features.h5", used, folder)
        run.results["missing_scans"] = missing
        points = ScanPoints(data.root, folder, set(used) - set(missing))
        answers = find_poses(run, queries, points, options.pose)
        write_submission(run, submission, answers, points)
        return run, answers, submission
