"""Aachen Day-Night v1.1, from the dataset's folder to a submission for visuallocalization.net.

The defaults are the published settings (hloc's for semi-dense matchers), but for the keypoints'
position, which is where the matches of all pairs agree. In the output folder:

    sfm/                               the dataset's poses with points from these matches; files as
                                       in `edm_hloc.pipelines.reconstruct`
    pairs-query-*.txt … queries.jsonl  as in `edm_hloc.pipelines.localize`
    Aachen-v1.1_*.txt                  the submission
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pycolmap

from edm_hloc.base.colmap import camera_text, is_model, posed_images, read_model
from edm_hloc.base.errors import EdmHlocError, raise_any
from edm_hloc.images.find import image_stamps
from edm_hloc.images.intrinsics import read_intrinsics_list
from edm_hloc.images.sizes import cameras_for_photos
from edm_hloc.keypoints.quantization import QuantizationConfig
from edm_hloc.localization.pnp import PoseOptions
from edm_hloc.localization.points import ModelPoints
from edm_hloc.localization.poses import check_basenames
from edm_hloc.localization.queries import Queries, query_cameras
from edm_hloc.localization.results import QueryPose
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.matchers.base import Matcher
from edm_hloc.matching.engine import MatchingConfig
from edm_hloc.pairs.covisibility import from_covisibility
from edm_hloc.pairs.descriptors import RetrievalImages
from edm_hloc.pairs.retrieval import RetrievalOptions, check_retrieval
from edm_hloc.pipelines.localize import (
    MODEL_KEYPOINTS,
    POSES_FILES,
    QUERY_KEYPOINTS,
    find_poses,
    model_keypoints,
    pairs_with_keypoints,
    set_poses_aside,
    write_submission,
)
from edm_hloc.pipelines.matching import MATCHING_FILES, PairsToMatch, match_and_quantize
from edm_hloc.pipelines.reconstruct import ReconstructionConfig, triangulate_model
from edm_hloc.pipelines.retrieval import retrieve
from edm_hloc.pipelines.run import Run

SOURCE = (
    "The dataset is at https://data.ciirc.cvut.cz/public/projects/2020VisualLocalization/"
    "Aachen-Day-Night/ (see https://www.visuallocalization.net/datasets)."
)


@dataclass(frozen=True)
class AachenOptions:
    """Settings of `localize_aachen`.

    Attributes:
        covisible: number of database images that each database image is matched with: those that
            share most 3D points with it in the dataset's model.
        retrieval: database images that each query is matched with.
        quantization: how matched points are merged into keypoints of the database images. The
            queries' are `pipelines.localize.QUERY_KEYPOINTS`.
        mapping: thresholds of the triangulation.
        pose: thresholds of the pose estimation.
        refine_tracks: align all photos of each point of the model (see `tracks/refine.py`); queries
            are then matched with its keypoints as they are in the model.
    """

    covisible: int = 20
    retrieval: RetrievalOptions = field(default_factory=RetrievalOptions)
    quantization: QuantizationConfig = field(
        default_factory=lambda: QuantizationConfig(
            max_error=2.0, cell_size=8.0, max_kps=8192, position="adjusted"
        )
    )
    mapping: MappingOptions = field(default_factory=MappingOptions)
    pose: PoseOptions = field(default_factory=lambda: PoseOptions(max_error=12.0))
    refine_tracks: bool = False


@dataclass(frozen=True)
class AachenDataset:
    """The dataset's folder and the paths in it.

    Attributes:
        root: folder of the dataset, with images_upright, 3D-models and queries.
    """

    root: Path

    @property
    def images(self) -> Path:
        """Folder of all photos, which their names are relative to."""
        nested = self.root / "images" / "images_upright"  # as its archives unpack
        return nested if nested.is_dir() else self.root / "images_upright"

    @property
    def model(self) -> Path:
        """The COLMAP model of the database images, in metres."""
        return self.root / "3D-models" / "aachen_v_1_1"

    @property
    def query_lists(self) -> list[Path]:
        """The lists of the queries with their intrinsics, of day and night."""
        names = (f"{hour}_time_queries_with_intrinsics.txt" for hour in ("day", "night"))
        return [self.root / "queries" / name for name in names]

    def queries(self) -> dict[str, pycolmap.Camera]:
        """Cameras of all queries by name, in the order of the lists.

        Raises:
            EdmHlocError: a list cannot be read, is empty or has the queries of the other one, two
                cameras of a query contradict each other, or two queries have the same name without
                folders.
        """
        cameras: dict[str, pycolmap.Camera] = {}
        for path in self.query_lists:
            listed = read_intrinsics_list(path)
            if not listed:
                raise EdmHlocError(
                    f"The list of queries {path} is empty: get it again from the dataset's folder "
                    "queries/."
                )
            if cameras and listed.keys() <= cameras.keys():
                raise EdmHlocError(
                    f"{path} names no other queries than {self.query_lists[0]}: get it again from "
                    "the dataset's folder queries/."
                )
            for name, camera in listed.items():
                if camera_text(cameras.setdefault(name, camera)) != camera_text(camera):
                    raise EdmHlocError(
                        f"{path}: {name} has another camera there than in the list before, "
                        f"{self.query_lists[0]}: remove one of the two."
                    )
        check_basenames(cameras)
        return cameras

    def problems(self) -> list[str]:
        """Parts of the dataset that are missing, each with where to get it; none if complete."""
        if not self.root.is_dir():
            return [
                f"No such folder: {self.root}. Give the folder of Aachen Day-Night v1.1, with "
                f"images_upright, 3D-models and queries in it. {SOURCE}"
            ]
        found = []
        if not self.images.is_dir():
            found.append(
                f"{self.images}/ is missing: unpack images/database_and_query_images.zip in "
                f"{self.root}."
            )
        if not is_model(self.model):
            found.append(
                f"{self.model}/ holds no COLMAP model (cameras, images, points3D): unpack "
                f"aachen_v1_1.zip in {self.root}."
            )
        for path in self.query_lists:
            if not path.is_file():
                found.append(f"{path} is missing: it lies in the dataset's folder queries/.")
        return [*found, SOURCE] if found else []

    def unusable_photos(self) -> list[str]:
        """A line for each photo of the model or the query lists that is missing or whose header
        cannot be read, and for each query that does not fit its camera.

        Raises:
            EdmHlocError: the model or a list cannot be read, the model has no points, or a photo of
                the model does not fit its camera.
        """
        model, known = read_model(self.model), self.queries()
        if not model.points3D:
            raise EdmHlocError(
                f"The model {self.model} holds no 3D points, by which its photos are paired: "
                f"unpack aachen_v1_1.zip in {self.root} again."
            )
        cameras = {n: model.cameras[image.camera_id] for n, image in posed_images(model).items()}
        there = image_stamps(self.images, [*cameras, *known])
        fitting = cameras_for_photos(self.images, cameras, f"the model {self.model}")
        _, problems = query_cameras(self.images, [name for name in known if name in there], known)
        return [
            *(name for name in (*cameras, *known) if name not in there),
            *(f"{n} cannot be read" for n in cameras if n in there and n not in fitting),
            *problems.values(),
        ]


def localize_aachen(
    dataset: Path,
    out: Path,
    matcher: Matcher,
    options: AachenOptions | None = None,
    matching: MatchingConfig | None = None,
    *,
    overwrite: bool = False,
) -> tuple[Run, list[QueryPose], Path]:
    """Localizes all queries of the dataset.

    Args:
        dataset: folder of the dataset (see `AachenDataset`).
        out: output folder; a run that is there is continued. See the module for its files.
        matcher: finds the matches of a pair.
        options: settings of every step.
        matching: memory and threads of the matching; does not change the matches.
        overwrite: match and compute everything again, whatever the output folder holds.

    Returns:
        The record of the run, the result of each query, and the submission's path.

    Raises:
        EdmHlocError: something is missing in the dataset, or a step fails; what was computed is
            kept. A query that fails raises nothing.
    """
    options, matching = options or AachenOptions(), matching or MatchingConfig()
    data = AachenDataset(Path(dataset))
    raise_any(data.problems())
    known = data.queries()
    names = list(known)
    pairs = from_covisibility(data.model, options.covisible)
    database = list(dict.fromkeys(name for pair in pairs for name in pair))
    check_retrieval(options.retrieval, names, database)
    settings = {
        "command": "aachen",
        "dataset": str(data.root.resolve()),
        "options": asdict(options),
    }
    files = (*MATCHING_FILES, *POSES_FILES, MODEL_KEYPOINTS)
    with Run.begin(
        out, settings, matcher, files, overwrite=overwrite, shards=matching.shards
    ) as run:
        label = f"{options.retrieval.label}{options.retrieval.number}"
        submission = out / f"Aachen-v1.1_{matcher.info.name}_{label}.txt"
        set_poses_aside(run, submission.name)
        mapping = ReconstructionConfig(
            keypoints=options.quantization,
            matching=matching,
            mapping=options.mapping,
            refine_tracks=options.refine_tracks,
            overwrite=overwrite,
        )
        sfm = triangulate_model(data.model, data.images, out / "sfm", pairs, matcher, mapping)
        run.results["sfm"] = sfm.results
        root = data.images if options.refine_tracks else None
        points = ModelPoints(out / "sfm" / "model", image_root=root)
        features = model_keypoints(run, points, points.names())
        cameras, unusable = query_cameras(data.images, names, known)
        images = RetrievalImages(data.images, names, points.names())
        retrieved = retrieve(run, options.retrieval, images, matcher)
        queries = Queries(names, cameras, retrieved, unusable)
        if options.refine_tracks:
            queries = replace(queries, photos={name: data.images / name for name in cameras})
        match_and_quantize(
            run,
            PairsToMatch(
                data.images, pairs_with_keypoints(queries, features), reference_features=features
            ),
            matcher,
            QUERY_KEYPOINTS,
            matching,
            overwrite=overwrite,
        )
        answers = find_poses(run, queries, points, options.pose)
        write_submission(run, submission, answers, points)
        return run, answers, submission
