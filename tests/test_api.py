"""The front door: `edm_hloc.match`, `load_matcher`, `reconstruct`, `localize`, `register`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
from PIL import Image

import edm_hloc
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.matches import Matches
from edm_hloc.images.cameras import CameraOptions
from edm_hloc.localization.pnp import PoseOptions
from edm_hloc.localization.poses import read_poses
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.matchers.base import Preprocessing
from edm_hloc.matching.engine import MatchingConfig
from edm_hloc.pipelines.localize import LocalizationConfig
from edm_hloc.pipelines.reconstruct import ReconstructionConfig
from edm_hloc.refinement.load import MatcherRecipe
from tests.scenes import TruthMatcher


def test_the_package_itself_loads_no_library() -> None:
    heavy = "{'torch', 'pycolmap', 'numpy', 'h5py', 'PIL'}"
    code = f"import sys, edm_hloc; dir(edm_hloc); print(sorted({heavy} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_every_name_is_there() -> None:
    assert set(edm_hloc.__all__) <= set(dir(edm_hloc))
    assert all(getattr(edm_hloc, name) for name in edm_hloc.__all__)
    assert edm_hloc.EdmHlocError is EdmHlocError  # what scripts catch
    with pytest.raises(AttributeError, match="no attribute 'matsch'"):
        edm_hloc.matsch  # noqa: B018


def test_match_and_draw(scene: Path) -> None:
    photos = sorted((scene / "images").iterdir())
    matcher = edm_hloc.load_matcher("edm", weights="edm_s", resize=320, device="cpu")
    assert str(matcher).startswith("RefinedMatcher edm, weights edm_s (edm_s, ")
    found = edm_hloc.match(photos[0], str(photos[1]), matcher)
    assert isinstance(found, Matches)
    assert len(found) > 100
    assert repr(found).endswith(f"of {photos[0]} and {photos[1]}")
    assert repr(found).startswith(f"{len(found):,} matches with scores 0.")
    best = found[np.argsort(-found.scores)[:10]]
    pictures = [matches.draw() for matches in (found, best)]
    assert all(isinstance(picture, Image.Image) for picture in pictures)
    assert pictures[0].size == pictures[1].size
    assert np.any(np.asarray(pictures[0]) != np.asarray(pictures[1]))
    plain = edm_hloc.match(
        photos[0], photos[1], weights="edm_s", refine="none", resize=320, device="cpu"
    )
    assert 0 < len(plain) < len(found)
    assert repr(found[:0]).startswith("no matches of ")
    found[:0].draw()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("edm", {"weihgts": "edm_s"}),
        ("edm", {"reszie": 640}),
        ("edm", {"refine": "photometrc"}),
        ("loftr", {"refined": "image0"}),  # which is EDM's
        ("eloftr", {"refined": "image0", "refine": "none"}),
        ("edm", {"resize": 16}),
        ("edm", {"resize": "a"}),
        ("edm", {"resize": 640.5, "batch_size": 1}),
        ("edm", {"threshold": "a"}),
        ("edm", {"topk": True}),
        ("edm", {"network_size": "a"}),
        ("edm", {"network_size": "a", "batch_size": 1}),
        ("eloftr", {"resize": None, "topk": 1.5, "refine": "none"}),
        ("edm", {"candidates": "yes", "refined": "image0"}),
        ("edm", {"refined": "both"}),
        ("edm", {"onnx": 5, "batch_size": 1}),
    ],
)
def test_wrong_settings_are_refused(name: str, settings: dict[str, Any]) -> None:
    wrong = "weihgts|reszie|photometrc|no setting 'refined'|at least 32|: it must be "
    with pytest.raises(EdmHlocError, match=wrong):
        edm_hloc.load_matcher(name, device="cpu", **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"topk": 0},
        {"topk": -5, "batch_size": 1},
        {"threshold": float("nan")},
        {"threshold": 5.0, "refine": "none"},
        {"threshold": -1, "name": "eloftr"},
        {"batch_size": 0},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    """Instead of a matcher that finds nothing."""
    with pytest.raises(EdmHlocError, match=r"(topk|threshold|batch_size) is .*: it must be at lea"):
        edm_hloc.load_matcher(**settings, device="cpu")
    with pytest.raises(EdmHlocError, match="it must be at least"):
        edm_hloc.match("a.jpg", "b.jpg", **settings, device="cpu")


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        (edm_hloc.PairSelection, {"partners": 0}),
        (edm_hloc.PairSelection, {"overlap": -2}),
        (edm_hloc.PairSelection, {"loop_step": 0}),
        (MatchingConfig, {"workers": 0}),
        (MatchingConfig, {"workers": -1, "ray": "local"}),
        (MatchingConfig, {"shards": -1}),
        (MatchingConfig, {"cache_bytes": -1}),
        (MatchingConfig, {"host_cache_bytes": -1}),
        (MappingOptions, {"max_error": float("nan")}),
        (MappingOptions, {"seed": -1}),
        (PoseOptions, {"max_error": 0}),
        (PoseOptions, {"min_inliers": 3}),
        (PoseOptions, {"seed": 2**31}),
    ],
)
def test_configurations_out_of_range_are_refused(kind: type, setting: dict[str, Any]) -> None:
    with pytest.raises(EdmHlocError, match=rf"{kind.__name__}\.{next(iter(setting))} is .* at lea"):
        kind(**setting)
    assert MatchingConfig(ray="local", workers=0).workers == 0  # as many as there is room for


@pytest.mark.parametrize("device", [5, ["cpu"], "gpu"])
def test_wrong_devices_are_refused(device: Any) -> None:
    with pytest.raises(EdmHlocError, match="There is no device"):
        edm_hloc.load_matcher(device=device)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"config": edm_hloc.LocalizationConfig()}, "it must be ReconstructionConfig"),
        ({"config": ReconstructionConfig(masks="masks")}, r"masks is 'masks': .* Path or None"),
        (
            {"config": ReconstructionConfig(mapping=MappingOptions(min_inliers="a"))},
            "MappingOptions.min_inliers is 'a': it must be int",
        ),
        (
            {"config": ReconstructionConfig(mapping=MappingOptions(mapper="fast"))},
            "'fast': it must be 'incremental' or 'global'",
        ),
        ({"config": ReconstructionConfig(matching=5)}, "matching is 5: it must be MatchingConfig"),
        (
            {"pairs": edm_hloc.PairSelection(partners="a")},
            "partners is 'a': it must be int or None",
        ),
        ({"pairs": 5}, "pairs is 5: it must be"),
        ({"pairs": ["ab"]}, "pairs holds 'ab': each must be the names of two photos"),
        ({"pairs": [("a", "b", "c")]}, "each must be the names of two photos"),
        ({"pairs": [frozenset(("a", "b"))]}, "the names of two photos, the first and the second"),
        ({"pairs": [(Path("a"), Path("b"))]}, "each must be the names of two photos"),
        ({"pairs": np.array([[1, 2]])}, "each must be the names of two photos"),
        ({"pairs": np.array("ab")}, "each must be the names of two photos"),
        ({"pairs": [("a", "a")]}, "pairs holds no pair of two different images"),
        ({"matcher": "edm"}, "matcher is 'edm': it must be Matcher"),
    ],
)
def test_settings_of_a_wrong_type_are_refused_before_any_work(
    settings: dict[str, Any], message: str, scene: Path, tmp_path: Path
) -> None:
    arguments = {"pairs": [("a", "b")], "matcher": TruthMatcher(scene), **settings}
    with pytest.raises(EdmHlocError, match=message):
        edm_hloc.reconstruct(scene / "images", tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", ["", None, b"photos", 5, ["photos"]])
def test_what_is_no_path_is_refused(
    wrong: Any, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of these "" would be the current folder."""
    monkeypatch.chdir(tmp_path)
    images, truth, matcher = scene / "images", scene / "truth", TruthMatcher(scene)
    photo = str(next(images.iterdir()))
    for name, call in (
        ("photo0", lambda: edm_hloc.match(wrong, photo)),
        ("photo1", lambda: edm_hloc.match(photo, wrong, matcher)),
        ("photos", lambda: edm_hloc.reconstruct(wrong, "out", matcher=matcher)),
        ("out", lambda: edm_hloc.reconstruct(images, wrong, matcher=matcher)),
        ("model", lambda: edm_hloc.localize(wrong, images, images, "out", matcher)),
        ("photos", lambda: edm_hloc.localize(truth, wrong, images, "out", matcher)),
        ("new_photos", lambda: edm_hloc.localize(truth, images, wrong, "out", matcher)),
        ("out", lambda: edm_hloc.localize(truth, images, images, wrong, matcher)),
    ):
        with pytest.raises(EdmHlocError, match=f"^{name} is (empty: give|.*: it must be str or)"):
            call()
    assert not [*tmp_path.iterdir()]


def test_settings_of_localize_of_a_wrong_type_are_refused(tmp_path: Path) -> None:
    other = edm_hloc.LocalizationConfig(poses=PoseOptions(max_error="a"))
    with pytest.raises(EdmHlocError, match=r"PoseOptions\.max_error is 'a': it must be float"):
        edm_hloc.localize("model", "photos", "new", tmp_path / "out", config=other)


def test_worker_processes_can_make_what_load_matcher_makes() -> None:
    weights = edm_hloc.load_matcher("edm", weights="edm_s", device="cpu").info.weights.path
    told = {"weights": weights, "resize": 320, "topk": 50, "network_size": 256, "device": "cpu"}
    for matcher in (
        edm_hloc.load_matcher(**told),
        edm_hloc.load_matcher(**told, threshold=0.3, refine="none"),
    ):
        again = MatcherRecipe(**json.loads(json.dumps(asdict(matcher.recipe)))).load("cpu")
        assert again.provenance == matcher.provenance
        assert matcher.info.preprocessing.resize_max == 320
    for other in ({"resize": None}, {"refined": "image1"}):
        assert edm_hloc.load_matcher(**{**told, **other}).recipe is None


def test_a_run_says_when_it_has_no_workers(
    scene: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    matching = MatchingConfig(workers=2)
    nowhere = tmp_path / "nowhere"
    for recipe, said in ((None, 1), (MatcherRecipe(), 0)):
        matcher = TruthMatcher(scene)
        matcher.recipe = recipe
        for start in (
            lambda matcher: edm_hloc.reconstruct(
                scene / "images",
                nowhere / "out",
                [("a", "b")],
                matcher,
                edm_hloc.ReconstructionConfig(matching=matching, masks=nowhere),
            ),
            lambda matcher: edm_hloc.localize(
                nowhere, nowhere, nowhere, nowhere, matcher, LocalizationConfig(matching=matching)
            ),
        ):
            caplog.clear()
            with pytest.raises(EdmHlocError):
                start(matcher)
            assert caplog.text.count("This process does all the matching") == said


def test_settings_beside_a_matcher_are_refused(scene: Path) -> None:
    photo = scene / "images" / "view_00.jpg"
    with pytest.raises(EdmHlocError, match="resize: settings are of `load_matcher`"):
        edm_hloc.match(photo, photo, TruthMatcher(scene), resize=640)
    with pytest.raises(EdmHlocError, match="resize is a part of preprocessing"):
        edm_hloc.load_matcher("edm", resize=640, preprocessing=Preprocessing(resize_max=320))


def test_reconstruct_then_localize(scene: Path, tmp_path: Path) -> None:
    known, new = tmp_path / "photos", tmp_path / "new"
    shutil.copytree(scene / "images", known)
    new.mkdir()
    left_out = sorted(path.name for path in known.iterdir())[3]
    (known / left_out).rename(new / left_out)

    config = edm_hloc.ReconstructionConfig(
        cameras=CameraOptions(mode="single", model="SIMPLE_PINHOLE")
    )
    out = tmp_path / "out"
    model = edm_hloc.reconstruct(known, str(out), matcher=TruthMatcher(scene), config=config)
    assert model.statistics.registered == 6
    assert model.model.num_points3D() == model.statistics.points > 300
    assert model.unregistered == ()
    assert model.report == out / "report.html"
    assert model.report.is_file()
    assert repr(model).startswith("6 of 6 photos registered, ")
    assert repr(model).endswith(f"px, in {out / 'model'}")
    assert model.mesh(tmp_path / "mesh.glb").read_bytes().startswith(b"glTF")
    with pytest.raises(edm_hloc.EdmHlocError, match="must end with"):
        model.mesh(str(tmp_path / "mesh.stl"))
    again = edm_hloc.reconstruct(known, out, edm_hloc.PairSelection(), TruthMatcher(scene), config)
    assert again.run.results["matching"]["matched"] == 0
    assert again.statistics == model.statistics

    poses = edm_hloc.localize(out / "model", known, new, tmp_path / "poses", TruthMatcher(scene))
    assert list(poses) == [left_out]
    assert poses[left_out].status == "localized"
    assert repr(poses).startswith("1 of 1 photos localized, ")
    assert repr(poses).endswith(f"in {tmp_path / 'poses'}")
    assert isinstance(poses.poses[left_out], pycolmap.Rigid3d)
    assert set(read_poses(tmp_path / "poses" / "poses.txt")) == {left_out}


@pytest.mark.slow
def test_what_is_returned_holds_wherever_the_program_goes(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a notebook with `%cd`, say."""
    shutil.copytree(scene / "images", tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    config = edm_hloc.ReconstructionConfig(
        cameras=CameraOptions(mode="single", model="SIMPLE_PINHOLE"), refine_tracks=False
    )
    truth = TruthMatcher(scene)
    model = edm_hloc.reconstruct("photos", "out", matcher=truth, config=config)
    poses = edm_hloc.localize("out/model", "photos", "photos", "poses", truth)
    photos = sorted(Path("photos").iterdir())
    found = edm_hloc.match(photos[0], str(photos[1]), truth)
    monkeypatch.chdir(tmp_path.parent)
    assert model.model.num_points3D() == model.statistics.points
    assert model.report is not None
    assert model.report.is_file()
    assert poses.report is not None
    assert poses.report.is_file()
    assert found.draw().size[0] > 0


def test_pairs_of_ones_own(scene: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in (scene / "images").iterdir())[:3]
    pairs = [(names[0], names[1]), (names[1], names[2]), (names[0], names[2])]
    config = edm_hloc.ReconstructionConfig(
        cameras=CameraOptions(mode="single", model="SIMPLE_PINHOLE"), refine_tracks=False
    )
    model = edm_hloc.reconstruct(
        scene / "images", tmp_path / "out", pairs, TruthMatcher(scene), config
    )
    assert model.run.results["matching"]["matched"] == 3
    with pytest.raises(EdmHlocError, match="No such folder of images"):
        edm_hloc.reconstruct(tmp_path / "nowhere", tmp_path / "out2", matcher=TruthMatcher(scene))


@pytest.mark.parametrize(
    "form",
    [
        list,
        np.array,
        lambda pairs: [list(pair) for pair in pairs],
        lambda pairs: [np.array(pair) for pair in pairs],
        lambda pairs: [*pairs, (pairs[0][1], pairs[0][0]), (pairs[0][0], pairs[0][0])],
    ],
)
def test_pairs_may_be_held_by_anything(
    form: Any, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = sorted(path.name for path in (scene / "images").iterdir())[:3]
    pairs = [(names[0], names[1]), (names[1], names[2])]
    given: list[Any] = []

    def keep(photos: Path, out: Path, pairs: Any, *_: Any) -> None:
        given.extend(pairs)
        raise InterruptedError

    monkeypatch.setattr("edm_hloc.pipelines.reconstruct.reconstruct", keep)
    with pytest.raises(InterruptedError):
        edm_hloc.reconstruct(scene / "images", tmp_path / "out", form(pairs), TruthMatcher(scene))
    assert given == pairs
    assert {type(name) for pair in given for name in pair} == {str}
    assert {type(pair) for pair in given} == {tuple}


def test_a_run_that_fails_has_its_own_report(scene: Path, tmp_path: Path) -> None:
    """An earlier one would look like its result."""
    photos, out = tmp_path / "photos", tmp_path / "out"
    shutil.copytree(scene / "images", photos)
    names = sorted(path.name for path in photos.iterdir())
    config = edm_hloc.ReconstructionConfig(
        cameras=CameraOptions(mode="single", model="SIMPLE_PINHOLE"), refine_tracks=False
    )
    pairs = [(names[0], names[1]), (names[1], names[2]), (names[0], names[2])]
    model = edm_hloc.reconstruct(photos, out, pairs, TruthMatcher(scene), config)
    assert "The run failed" not in (out / "report.html").read_text("utf-8")
    assert model.statistics.registered == 3
    for name in names[:3]:
        (photos / name).write_bytes(b"")
    with pytest.raises(edm_hloc.EdmHlocError):
        edm_hloc.reconstruct(photos, out, pairs, TruthMatcher(scene), config)
    assert "The run failed" in (out / "report.html").read_text("utf-8")


def test_no_pairs_get_a_sentence_and_leave_nothing(scene: Path, tmp_path: Path) -> None:
    with pytest.raises(EdmHlocError, match="no pair to match"):
        edm_hloc.reconstruct(scene / "images", tmp_path / "out", [], TruthMatcher(scene))
    (tmp_path / "pairs.txt").write_text("nothing.jpg here.jpg")
    with pytest.raises(EdmHlocError, match="holds no pair of the images"):  # a Path is as good
        edm_hloc.reconstruct(
            scene / "images", tmp_path / "out", tmp_path / "pairs.txt", TruthMatcher(scene)
        )
    assert not (tmp_path / "out").exists()


def test_register_without_hloc(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("hloc.")]:
        monkeypatch.delitem(sys.modules, name)  # another test may have imported it
    monkeypatch.setitem(sys.modules, "hloc", None)
    with pytest.raises(EdmHlocError, match="hloc"):
        edm_hloc.register()


def test_zlib_is_pythons_where_pycolmap_comes_second() -> None:
    """Pycolmap exports a zlib of its own: loaded first, it makes Python's abort."""
    code = (
        "import edm_hloc, pycolmap, io, numpy as np; "
        "np.savez_compressed(io.BytesIO(), a=np.random.rand(100_000))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=100)
    assert done.returncode == 0, done.stderr[-500:]
