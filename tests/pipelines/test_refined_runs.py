"""Runs whose tracks are refined, which is the default: what they go on from, and who comes in."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pycolmap
import pytest

from edm_hloc.base.colmap import posed_images, read_model
from edm_hloc.base.errors import EdmHlocError, NoRoomError
from edm_hloc.cli.summaries import print_reconstruction
from edm_hloc.evaluation.models import compare
from edm_hloc.images.cameras import CameraOptions
from edm_hloc.images.find import find_images
from edm_hloc.images.intrinsics import load_intrinsics
from edm_hloc.mapping import left_out as left_out_photos
from edm_hloc.mapping import output
from edm_hloc.mapping.completion import register_next_images
from edm_hloc.mapping.incremental import refining_options
from edm_hloc.mapping.left_out import LeftOut, register_left_out
from edm_hloc.mapping.look_alikes import ConflictSummary
from edm_hloc.mapping.mappers import map_database
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.mapping.output import MappingSummary, holds_only_models
from edm_hloc.mapping.parts import part_cameras, share_cameras
from edm_hloc.pipelines import extending
from edm_hloc.pipelines import reconstruct as pipeline
from edm_hloc.pipelines.reconstruct import ReconstructionConfig, reconstruct
from edm_hloc.pipelines.run import Run
from edm_hloc.tracks import alignment, refine
from edm_hloc.tracks.alignment import Alignment
from edm_hloc.tracks.config import TrackConfig
from edm_hloc.tracks.refine import uncertainty_files
from tests.mapping.scenes import CAMERA, NAMES, THREADS, assert_near_truth, build, exif, make_scene
from tests.scenes import TruthMatcher

DEFAULT = ReconstructionConfig(
    cameras=CameraOptions(mode="single", model="SIMPLE_PINHOLE"), mapping=MappingOptions(threads=1)
)
UNREFINED = replace(DEFAULT, refine_tracks=False)
LATE = "view_03.jpg"


def run_on(scene: Path, out: Path, config: ReconstructionConfig) -> Run:
    pairs = list(itertools.combinations(find_images(scene / "images"), 2))
    return reconstruct(scene / "images", out, pairs, TruthMatcher(scene), config)


def files_of(model: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(model.iterdir())}


@pytest.mark.slow
def test_the_model_of_a_run_without_refinement_is_refined_and_not_mapped_again(
    scene: Path, finished: Path, mapped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(mapped, out)
    looked_at: list[pycolmap.Reconstruction] = []

    def find_conflicts(model: pycolmap.Reconstruction, database: Path) -> ConflictSummary:
        looked_at.append(model)
        return ConflictSummary((), 7)

    with monkeypatch.context() as patch:
        patch.setattr(extending, "map_database", _not_to_be_called)
        patch.setattr(pipeline, "find_conflicts", find_conflicts)
        run = run_on(scene, out, DEFAULT)
    assert run.results["conflicts"] == {"pairs": (), "compared": 7}
    written = read_model(out / "model")  # of the refined model, whose lens is known
    assert [model.compute_mean_reprojection_error() for model in looked_at] == [
        written.compute_mean_reprojection_error()
    ]
    assert run.results["tracks"]["before"]["registered"] == 7
    assert files_of(out / "model") == files_of(finished / "model")
    assert {p.name for p in out.iterdir()} == {p.name for p in finished.iterdir()}
    before = compare(mapped / "model", scene / "truth")
    after = compare(out / "model", scene / "truth")
    assert after.position_median < 0.7 * before.position_median
    # and back: mapped anew, as the refined model is no longer that of the mapper
    back = run_on(scene, out, UNREFINED)
    assert "tracks" not in back.results
    assert files_of(out / "model") == files_of(mapped / "model")
    assert not (out / "model_uncertainty.json").exists()


def test_a_mapped_model_that_somebody_has_changed_is_not_gone_on_from(
    scene: Path, mapped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(mapped, tmp_path / "out")
    points = tmp_path / "out" / "model" / "points3D.bin"
    points.write_bytes(points.read_bytes() + b"1")
    monkeypatch.setattr(extending, "map_database", _not_to_be_called)
    with pytest.raises(AssertionError, match="mapped again"):
        run_on(scene, tmp_path / "out", DEFAULT)


def _not_to_be_called(*_: object) -> None:
    raise AssertionError("mapped again")


@pytest.mark.slow
def test_a_run_goes_on_from_what_a_full_disk_has_left(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A photo that is in no model is tried once more: the database is opened in between."""
    out = tmp_path / "out"
    monkeypatch.setattr(extending, "map_database", without(LATE))
    force_to_disk = output.force_to_disk

    def full(path: Path) -> None:
        if out / ".model.tmp" in path.parents:  # that of the refined model
            raise OSError(28, "No space left on device")
        force_to_disk(path)

    with monkeypatch.context() as patch:
        patch.setattr(output, "force_to_disk", full)
        with pytest.raises(NoRoomError, match="what is already stored is kept"):
            run_on(scene, out, DEFAULT)
    monkeypatch.setattr(extending, "map_database", _not_to_be_called)
    radii = []

    def align(*arguments: Any) -> Alignment:
        radii.append(arguments[-1][0])
        return alignment.align(*arguments)

    monkeypatch.setattr(refine, "align", align)
    run = run_on(scene, out, DEFAULT)
    assert radii == [TrackConfig().patch_radii[1]]
    assert run.results["tracks"]["registered"] == (LATE,)


def test_a_model_that_comes_back_has_its_uncertainties(
    scene: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a run with other settings has failed while it was mapping."""
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    files = uncertainty_files(out / "model")
    before = [file.read_bytes() for file in files]

    def refuse(*_: object) -> None:
        raise EdmHlocError("no model")

    other = replace(DEFAULT, mapping=MappingOptions(threads=1, min_tri_angle=3.0))
    with monkeypatch.context() as patch:
        patch.setattr(extending, "map_database", refuse)
        for _ in range(2):
            with pytest.raises(EdmHlocError, match="no model"):
                run_on(scene, out, other)
    assert not any(file.exists() for file in files)
    monkeypatch.setattr(extending, "map_database", _not_to_be_called)
    run_on(scene, out, DEFAULT)
    assert [file.read_bytes() for file in files] == before
    assert not list(out.glob("model_earlier*"))
    monkeypatch.undo()
    run_on(scene, out, other)  # takes its place
    assert all(file.is_file() for file in files)
    assert not list(out.glob("model_earlier*"))


def test_the_other_models_are_refined_too(scene: Path, tmp_path: Path) -> None:
    """Photos that fall apart into two groups, and so into two models."""
    names = find_images(scene / "images")
    pairs = [p for group in (names[:4], names[4:]) for p in itertools.combinations(group, 2)]
    medians = []
    for config in (UNREFINED, DEFAULT):
        out = tmp_path / "out"
        run = reconstruct(scene / "images", out, pairs, TruthMatcher(scene), config)
        assert run.results["mapped"]["components"] == (4, 3)
        parts = out / "model_parts"
        assert holds_only_models(parts)
        assert [path.name for path in parts.iterdir()] == ["2"]
        model = read_model(parts / "2")
        assert set(posed_images(model)) == set(names[4:])
        medians.append(model.compute_mean_reprojection_error())
    assert medians[1] < 0.8 * medians[0]


@pytest.mark.slow
def test_a_removed_model_beside_its_parts_is_mapped_anew(scene: Path, tmp_path: Path) -> None:
    """As the guide says; refinement does not go on from the parts that are left."""
    names, out = find_images(scene / "images"), tmp_path / "out"
    pairs = [p for group in (names[:4], names[4:]) for p in itertools.combinations(group, 2)]
    reconstruct(scene / "images", out, pairs, TruthMatcher(scene), UNREFINED)
    shutil.rmtree(out / "model")
    run = reconstruct(scene / "images", out, pairs, TruthMatcher(scene), DEFAULT)
    assert run.results["mapped"]["components"] == (4, 3)
    shutil.rmtree(out / "model")
    run = reconstruct(scene / "images", out, pairs, TruthMatcher(scene), UNREFINED)
    assert "tracks" not in run.results
    assert not any(file.exists() for file in uncertainty_files(out / "model"))


def without(name: str) -> Callable[..., MappingSummary]:
    """A mapper that does not take a photo."""

    def map_photos(database: Path, images: Path, out: Path, *others: Any) -> MappingSummary:
        summary = map_database(database, images, out, *others)
        model = read_model(out)
        model.deregister_frame(posed_images(model)[name].frame_id)
        shutil.rmtree(out)
        out.mkdir()
        model.write_binary(out)
        return replace(summary, unregistered=(name,), components=(6,))

    return map_photos


@pytest.mark.parametrize("known", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_photo_that_the_mapper_left_out_comes_in(
    known: bool,
    scene: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(extending, "map_database", without(LATE))
    cameras = DEFAULT.cameras
    if known:
        names = find_images(scene / "images")
        cameras = CameraOptions(known=load_intrinsics(scene / "truth", names))
    run = run_on(scene, tmp_path / "out", replace(DEFAULT, cameras=cameras))
    assert run.results["tracks"]["registered"] == (LATE,)
    mapped = run.results["mapped"]
    assert (mapped["unregistered"], mapped["components"]) == ((), (7,))
    assert mapped["statistics"]["registered"] == 7
    model = read_model(tmp_path / "out" / "model")
    assert posed_images(model)[LATE].num_points3D > 100
    assert len(model.cameras) == 1  # it is one of theirs
    if known:
        camera = next(iter(read_model(scene / "truth").cameras.values()))
        assert next(iter(model.cameras.values())).params.tolist() == camera.params.tolist()
    # the largest errors, of all photos: it is as exact as the others
    comparison = compare(tmp_path / "out" / "model", scene / "truth")
    assert comparison.registered == 7
    assert comparison.rotation_max < 0.1
    assert comparison.position_max < 0.1
    print_reconstruction(run, 1.0)
    assert f"could register what the mapper could not: {LATE}" in capsys.readouterr().out


def test_a_photo_of_nothing_in_the_model_stays_out(
    scene: Path, mapped: Path, tmp_path: Path
) -> None:
    model = read_model(mapped / "model")
    image = posed_images(model)[LATE]
    model.deregister_frame(image.frame_id)
    for point_id in list(model.point3D_ids())[20:]:  # too few for a pose
        model.delete_point3D(point_id)
    left_out = LeftOut(mapped / "database.db", frozenset({LATE}))
    colmap = refining_options(THREADS, focal=True, distortion=True)
    assert register_left_out(model, left_out, colmap) == []
    assert model.num_reg_images() == 6


def without_the_first(folder: Path) -> pycolmap.Reconstruction:
    """The model in the folder without its first photo, written to "fewer" and read again."""
    model = read_model(folder / "model")
    model.deregister_frame(posed_images(model)[NAMES[0]].frame_id)
    (folder / "fewer").mkdir()
    model.write_binary(folder / "fewer")
    return pycolmap.Reconstruction(folder / "fewer")


@pytest.mark.parametrize("factor", [1.0, 1e4])
def test_a_photo_whose_focal_length_diverges_stays_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    scene = make_scene(tmp_path, NAMES)
    build(scene, tmp_path / "d.db", CameraOptions(mode="per-image"))
    map_database(tmp_path / "d.db", scene.images, tmp_path / "model", THREADS)
    model = without_the_first(tmp_path)

    def diverging(mapper: Any, colmap: Any, tried: set[int]) -> None:
        register_next_images(mapper, colmap, tried)
        (image_id,) = tried
        mapper.reconstruction.images[image_id].camera.focal_length *= factor

    monkeypatch.setattr(left_out_photos, "register_next_images", diverging)
    left_out = LeftOut(tmp_path / "d.db", frozenset({NAMES[0]}))
    colmap = refining_options(THREADS, focal=True, distortion=True)
    registered = register_left_out(model, left_out, colmap)
    assert registered == ([NAMES[0]] if factor == 1.0 else [])
    assert model.num_reg_images() == len(NAMES) - (factor != 1.0)


def test_it_gets_a_camera_of_its_own_where_the_others_have(tmp_path: Path) -> None:
    """Photos of equal EXIF data share a camera in the database, but do not fit one."""
    scene = make_scene(tmp_path, NAMES, exif=exif(31))
    assert build(scene, tmp_path / "d.db").cameras == 1
    assert part_cameras(tmp_path / "d.db", tmp_path / "own.db", NAMES)
    map_database(tmp_path / "own.db", scene.images, tmp_path / "model", THREADS)
    model = without_the_first(tmp_path)
    before = [image.camera.params.tolist() for image in posed_images(model).values()]
    left_out = LeftOut(tmp_path / "d.db", frozenset({NAMES[0]}))
    colmap = refining_options(THREADS, focal=True, distortion=True)
    assert register_left_out(model, left_out, colmap) == [NAMES[0]]
    posed = posed_images(model)
    assert len({image.camera_id for image in posed.values()}) == len(NAMES)
    others = [posed[name].camera.params.tolist() for name in posed if name != NAMES[0]]
    assert sorted(others) == sorted(before)


def test_it_shares_the_camera_that_the_others_share(tmp_path: Path) -> None:
    """Photos without EXIF data have a camera each in the database, but one in the model."""
    scene = make_scene(tmp_path, NAMES)
    build(scene, tmp_path / "d.db", CameraOptions(mode="per-image"))
    assert share_cameras(tmp_path / "d.db", tmp_path / "one.db")
    map_database(tmp_path / "one.db", scene.images, tmp_path / "model", THREADS)
    model = without_the_first(tmp_path)
    left_out = LeftOut(tmp_path / "d.db", frozenset({NAMES[0]}))
    colmap = refining_options(THREADS, focal=True, distortion=True)
    assert register_left_out(model, left_out, colmap) == [NAMES[0]]
    posed = posed_images(model)
    assert len({image.camera_id for image in posed.values()}) == 1
    assert posed[NAMES[0]].num_points3D > 100
    model.write_binary(tmp_path / "fewer")
    assert_near_truth(scene, tmp_path / "fewer", rotation=0.2, position=0.5)
    assert CAMERA.width == model.cameras[posed[NAMES[0]].camera_id].width
