"""The plug-in in the real hloc, where it is installed: same files, and what docs/hloc.md shows."""

from __future__ import annotations

import copy
import itertools
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pycolmap
import pytest

import edm_hloc
from edm_hloc.interop.repair import repair_database, undefined_pairs_are_ignored
from edm_hloc.keypoints.aggregation import KeypointFiles, ReferenceFiles, aggregate
from edm_hloc.keypoints.h5 import FeatureReader
from edm_hloc.keypoints.quantization import QuantizationConfig
from edm_hloc.localization.points import ModelPoints
from edm_hloc.localization.poses import read_poses
from edm_hloc.localization.queries import Queries, localize_queries
from edm_hloc.mapping.database import MatchedImages
from edm_hloc.mapping.triangulation import triangulate
from edm_hloc.matching.reader import RawMatchReader
from tests.interop.real_hloc import import_match_dense


@pytest.fixture
def hloc() -> ModuleType:
    try:
        return import_match_dense()
    except Exception as error:  # not installed, or with libraries that do not fit each other
        pytest.skip(f"hloc is not installed or cannot be imported: {error}")


def assert_same_files(theirs: tuple[Path, Path], ours: tuple[Path, Path], pairs: list) -> None:
    with FeatureReader(theirs[0]) as a, FeatureReader(ours[0]) as b:
        assert a.names() == b.names() != []
        for name in a.names():
            assert a.keypoints(name).dtype == b.keypoints(name).dtype == np.float32
            np.testing.assert_array_equal(a.keypoints(name), b.keypoints(name))
            np.testing.assert_array_equal(a.scores(name), b.scores(name))
    number = 0
    with h5py.File(theirs[1]) as a, h5py.File(ours[1]) as b:
        for pair in pairs:
            for data in ("matches0", "matching_scores0"):
                mine, other = b["/".join(pair)][data], a["/".join(pair)][data]
                assert mine.dtype == other.dtype
                np.testing.assert_array_equal(mine, other)
            number += int((other[()] > 0).sum())
    assert number > 100


@pytest.mark.parametrize("preset", ["edm", pytest.param("edm_aachen", marks=pytest.mark.slow)])
def test_with_the_real_hloc(hloc: Any, preset: str, scene: Path, tmp_path: Path) -> None:
    """The same raw matches give the same files, and both sides can use the other's."""
    from hloc import localize_sfm, triangulation

    edm_hloc.register()
    images = scene / "images"
    names = sorted(path.name for path in images.iterdir())
    mapping = [*itertools.pairwise(names[:5]), (names[0], names[2])]
    queries = [(names[5], names[3]), (names[5], names[4]), (names[6], names[4])]
    for name, pairs in (("mapping", mapping), ("queries", queries)):
        (tmp_path / f"{name}.txt").write_text("".join(f"{a} {b}\n" for a, b in pairs))
    conf = copy.deepcopy(hloc.confs[preset])
    conf["model"]["weights"] = "edm_s"

    def aggregated(raw: Path, pairs: list, max_kps: int | None, reference: Path | None = None):
        files = raw.with_suffix(".features.h5"), raw.with_suffix(".matches.h5")
        config = QuantizationConfig(conf["max_error"], conf["cell_size"], max_kps)
        with RawMatchReader(raw) as reader:
            references = ReferenceFiles((reference,) if reference else ())
            aggregate(reader, pairs, KeypointFiles(*files), config, references)
        return files

    theirs = hloc.main(conf, tmp_path / "mapping.txt", images, tmp_path)
    ours = aggregated(theirs[1], mapping, 8192)
    assert_same_files(theirs, ours, mapping)
    for max_kps in (None, 300):
        raw = tmp_path / f"queries{max_kps}.h5"
        located = hloc.main(
            conf,
            tmp_path / "queries.txt",
            images,
            features=tmp_path / f"query_features{max_kps}.h5",
            matches=raw,
            features_ref=theirs[0],
            max_kps=max_kps,
        )
        again = aggregated(raw, queries, max_kps, reference=theirs[0])
        assert_same_files(located, again, queries)
        if max_kps is None:
            of_queries = {"theirs": located, "ours": again}
    # The keypoints of an earlier run vote when it is run again.
    voted, anchors = tmp_path / "voted.h5", tmp_path / "anchors.h5"
    for copied in (voted, anchors):
        shutil.copy(ours[0], copied)
    raw = tmp_path / "again.h5"
    hloc.main(conf, tmp_path / "mapping.txt", images, features=voted, matches=raw, overwrite=True)
    with RawMatchReader(raw) as reader:
        files = tmp_path / "voted.features.h5", tmp_path / "voted.matches.h5"
        config = QuantizationConfig(conf["max_error"], conf["cell_size"], 8192)
        voting = ReferenceFiles((anchors,), fixed=False)
        aggregate(reader, mapping, KeypointFiles(*files), config, voting)
    assert_same_files((voted, raw), files, mapping)

    # Each uses the files of both. Only the mapping images have keypoints.
    model = tmp_path / "model"
    model.mkdir()
    truth = pycolmap.Reconstruction(scene / "truth")
    _mapping_cameras(truth, names[:5]).write_binary(model)
    cameras = {image.name: truth.cameras[image.camera_id] for image in truth.images.values()}
    query_list = tmp_path / "intrinsics.txt"
    query_list.write_text(
        "".join(
            f"{n} {c.model.name} {c.width} {c.height} {' '.join(map(str, c.params))}\n"
            for n, c in ((name, cameras[name]) for name in names[5:7])
        )
    )
    retrieval = {names[5]: [names[3], names[4]], names[6]: [names[4]]}
    poses = {}
    for label, (features, matches) in (("theirs", theirs), ("ours", ours)):
        out = tmp_path / f"{label}_mapped_here"
        matched = MatchedImages(images, features, matches, mapping)
        _, mapped = triangulate(model, matched, tmp_path / "d.db", out)
        assert mapped.statistics.points > 50
        folder = tmp_path / label
        pairs_file = tmp_path / "mapping.txt"
        made = triangulation.main(folder, model, images, pairs_file, features, matches)
        if undefined_pairs_are_ignored() and made.num_points3D() == 0:  # which hloc does not notice
            assert repair_database(folder / "database.db").repaired == len(mapping)
            made = triangulation.run_triangulation(folder, folder / "database.db", images, made)
        assert made.num_points3D() > 20

        query_features, query_matches = of_queries[label]
        answers = localize_queries(
            Queries(list(retrieval), cameras, retrieval),
            query_features,
            query_matches,
            ModelPoints(out),
            tmp_path / f"{label}.jsonl",
        )
        poses[label, "here"] = {answer.query: answer.pose for answer in answers}
        written = tmp_path / f"{label}.txt"
        queries_file = tmp_path / "queries.txt"
        localize_sfm.main(out, query_list, queries_file, query_features, query_matches, written)
        poses[label, "hloc"] = read_poses(written)
    for found in poses.values():
        for image in truth.images.values():
            if image.name not in retrieval:
                continue
            pose, true = found[image.name], image.cam_from_world()
            assert np.rad2deg((pose.rotation * true.rotation.inverse()).angle()) < 8
            distance = pose.inverse().translation - true.inverse().translation
            assert np.linalg.norm(distance) < 0.1 * extent(truth)


def extent(model: Any) -> float:
    centres = np.array([i.cam_from_world().inverse().translation for i in model.images.values()])
    return float(np.linalg.norm(np.ptp(centres, axis=0)))


def _mapping_cameras(whole: Any, names: list[str]) -> Any:
    part = pycolmap.Reconstruction()
    for camera in whole.cameras.values():
        part.add_camera_with_trivial_rig(camera)
    for image in whole.images.values():
        if image.name in names:
            bare = pycolmap.Image(
                name=image.name, image_id=image.image_id, camera_id=image.camera_id
            )
            part.add_image_with_trivial_frame(bare, image.cam_from_world())
    return part


@pytest.mark.slow
def test_recipes_of_the_documentation(hloc: Any, scene: Path, tmp_path: Path) -> None:
    """What docs/hloc.md shows: a query against hloc's model, and another detector's keypoints."""
    from hloc import localize_sfm, pairs_from_exhaustive, reconstruction

    edm_hloc.register()
    images, outputs = scene / "images", tmp_path / "outputs"
    outputs.mkdir()
    names = sorted(path.name for path in images.iterdir())
    references, query = names[:4], names[4]
    truth = pycolmap.Reconstruction(scene / "truth")
    sfm_pairs, loc_pairs = tmp_path / "pairs-sfm.txt", tmp_path / "pairs-loc.txt"
    pairs_from_exhaustive.main(sfm_pairs, image_list=references)
    pairs_from_exhaustive.main(loc_pairs, image_list=[query], ref_list=references)

    def preset(name: str) -> dict[str, Any]:
        conf = copy.deepcopy(hloc.confs[name])
        conf["model"]["weights"] = "edm_s"
        return conf

    def made(folder: str, features: Path, matches: Path) -> Any:
        model = reconstruction.main(
            tmp_path / folder, images, sfm_pairs, features, matches, image_list=references
        )
        assert model.num_reg_images() == len(references)
        return model

    def error_of_query(model: Any, features: Path, matches: Path) -> float:
        """Distance from the true position, as part of the distance between two cameras."""
        camera = truth.find_image_with_name(query).camera
        ids = [model.find_image_with_name(name).image_id for name in references]
        localizer = localize_sfm.QueryLocalizer(model, {"estimation": {"ransac": {"max_error": 6}}})
        found, _ = localize_sfm.pose_from_cluster(localizer, query, camera, ids, features, matches)
        assert found["num_inliers"] > 20
        centres = {i.name: i.projection_center() for i in truth.images.values()}
        to_truth = pycolmap.estimate_sim3d(
            np.array([model.find_image_with_name(n).projection_center() for n in references]),
            np.array([centres[name] for name in references]),
        )
        position = to_truth * found["cam_from_world"].inverse().translation
        base = np.linalg.norm(centres[references[-1]] - centres[references[0]])
        return float(np.linalg.norm(position - centres[query]) / base)

    conf = preset("edm_refined")
    features, matches = hloc.main(conf, sfm_pairs, images, outputs)
    model = made("demo", features, matches)
    hloc.main(conf, loc_pairs, images, features=features, matches=matches, max_kps=None)
    assert error_of_query(model, features, matches) < 0.1

    # repeatable keypoints stand for those of a detector
    detected = tmp_path / "detected.h5"
    with h5py.File(features) as made_here, h5py.File(detected, "w") as file:
        for name in references:
            file[f"{name}/keypoints"] = made_here[name]["keypoints"][()]
    conf = preset("edm_superpoint")
    nowhere, matches = hloc.main(conf, sfm_pairs, images, outputs, features_ref=detected)
    assert not nowhere.exists()  # the trap that the documentation and the doctor tell of
    model = made("detected", detected, matches)
    features, matches = hloc.main(
        conf,
        loc_pairs,
        images,
        features=outputs / "query_features.h5",
        matches=outputs / "loc_matches.h5",
        features_ref=detected,
        max_kps=None,
    )
    assert error_of_query(model, features, matches) < 0.3
