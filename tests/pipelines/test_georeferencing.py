"""`reconstruct` brings its model onto the Earth where its photos carry GPS."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from edm_hloc import cli
from edm_hloc.base.colmap import read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.cli.earth import print_place
from edm_hloc.cli.summaries import print_reconstruction
from edm_hloc.images.find import find_images
from edm_hloc.images.gps import Fix
from edm_hloc.mapping.georeference import (
    Georeference,
    camera_centres,
    place_of,
    to_earth,
    to_local,
    write_placed,
)
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.pipelines.georeferencing import place_on_earth, priors_of
from edm_hloc.pipelines.reconstruct import reconstruct, triangulate_model
from edm_hloc.pipelines.refine_poses import PosedPhotos, refine_given_poses
from edm_hloc.pipelines.run import Run
from edm_hloc.report.collect import collect
from edm_hloc.report.earth import place_figures
from edm_hloc.report.page import make_report
from edm_hloc.tracks.refine import uncertainty_files
from tests.images.gps_photos import add_position
from tests.pipelines.test_extending import CONFIG
from tests.scenes import TruthMatcher

ORIGIN = (47.37, 8.54, 410.0)
WRONG = "view_03.jpg"


def true_places(scene: Path) -> dict[str, np.ndarray]:
    """The true cameras in metres to the east, north and up: the scene's y points down."""
    model = pycolmap.Reconstruction(scene / "truth")
    return {n: xyz[[0, 2, 1]] * [1, 1, -1] for n, xyz in camera_centres(model).items()}


@pytest.fixture(scope="module")
def photos(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scene's photos with GPS to 5 cm, one of them 200 m off."""
    folder = tmp_path_factory.mktemp("gps") / "images"
    shutil.copytree(scene / "images", folder)
    rng = np.random.default_rng(0)
    for name, enu in true_places(scene).items():
        off = rng.normal(0, 0.05, 3) + (200 if name == WRONG else 0)
        add_position(folder / name, *to_earth(enu + off, ORIGIN)[0].tolist())
    return folder


def run_on(
    photos: Path, out: Path, scene: Path, positions: str = "gps", priors: float | None = None
) -> Run:
    pairs = list(itertools.combinations(find_images(photos), 2))
    config = replace(CONFIG, positions=positions, position_priors=priors)
    return reconstruct(photos, out, pairs, TruthMatcher(scene), config)


def test_a_model_with_gps_is_in_metres_on_earth(
    scene: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run = run_on(photos, out, scene)
    placed = run.results["georeferenced"]
    assert placed["used"]
    assert placed["wrong"] == (WRONG,)
    assert placed["median"] < 0.2
    shift = to_local([Fix(*placed["origin"])], ORIGIN)[0]
    for name, xyz in camera_centres(read_model(out / "model")).items():
        np.testing.assert_allclose(xyz + shift, true_places(scene)[name], atol=0.3)
    record = json.loads((out / "georeference.json").read_text())
    assert record["origin"] == list(placed["origin"])
    assert len(json.loads((out / "cameras.geojson").read_text())["features"]) == 7
    print_reconstruction(run, 1.0)
    said = capsys.readouterr().out
    assert "metres east, north and up of 47.3" in said
    assert f"wrong positions, left out: {WRONG}" in said
    page = make_report(out).read_text()
    assert "On Earth" in page
    assert page.count("<title>view_") == 7
    # nothing is done again, and nothing moves
    before = camera_centres(read_model(out / "model"))
    again = run_on(photos, out, scene)
    assert again.results["georeferenced"]["origin"] == list(placed["origin"])
    for name, xyz in camera_centres(read_model(out / "model")).items():
        np.testing.assert_array_equal(xyz, before[name])
    # with the positions in the mapping, which is done again; the wrong one does no harm
    after = run_on(photos, out, scene, priors=0.05)
    assert after.done["model"] != again.done["model"]
    assert after.results["georeferenced"]["wrong"] == (WRONG,)
    shift = to_local([Fix(*after.results["georeferenced"]["origin"])], ORIGIN)[0]
    for name, xyz in camera_centres(read_model(out / "model")).items():
        np.testing.assert_allclose(xyz + shift, true_places(scene)[name], atol=0.3)
    # the same by hand, and in a frame of a survey
    crs = ["--crs", "EPSG:32632"] if _has_pyproj() else []
    command = ["georeference", str(out), str(tmp_path / "earth"), *crs]
    assert cli.main(command) == 0
    assert "6 of 7 agree" in capsys.readouterr().out
    assert (tmp_path / "earth" / "map.svg").read_text().startswith("<svg")
    if crs:
        first = (tmp_path / "earth" / "cameras.csv").read_text().splitlines()[1].split(",")
        assert float(first[1]) == pytest.approx(465_000, abs=2000)  # 0.46° west of 9° E
        assert float(first[2]) == pytest.approx(5_246_500, abs=2000)


def test_priors_that_cannot_be_used(scene: Path, photos: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"positions": "none"}, "need 3 photos whose position is known .* there are 0"),
        ({"refine_tracks": True}, "with --tracks none"),
        ({"mapping": MappingOptions(mapper="global")}, "for the incremental mapper"),
    ):
        config = replace(CONFIG, position_priors=1.0, **options)
        with pytest.raises(EdmHlocError, match=message):
            reconstruct(photos, tmp_path / "out", [], TruthMatcher(scene), config)
    assert not (tmp_path / "out").exists()


def test_photos_that_share_a_position_are_one_prior() -> None:
    """Four views of a panorama pull as one photo does; two panoramas are too few for priors."""
    fixes = {f"{i}.jpg": Fix(47.37, 8.54 + i / 1000, 410.0) for i in range(3)}
    fixes |= {f"0_{yaw}.jpg": fixes["0.jpg"] for yaw in range(3)}
    fixes["1.jpg"] = replace(fixes["1.jpg"], accuracy=0.5, altitude_accuracy=0.8)
    deviations = priors_of(fixes, 3.0).deviations
    assert deviations["2.jpg"] == [3.0, 3.0, 6.0]
    assert deviations["1.jpg"] == [0.5, 0.5, 0.8]
    assert deviations["0.jpg"] == deviations["0_2.jpg"] == [6.0, 6.0, 12.0]
    del fixes["2.jpg"]
    with pytest.raises(
        EdmHlocError, match=r"there are 2 of the 5 .* share a position count as one"
    ):
        priors_of(fixes, 3.0)


def write_turned(
    truth: dict[str, np.ndarray], folder: Path, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Writes a model of cameras at true places, in a frame of its own; returns the places there."""
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(
        pycolmap.Camera(
            camera_id=1, model="SIMPLE_PINHOLE", width=640, height=480, params=[500, 320, 240]
        )
    )
    for i, (name, xyz) in enumerate(truth.items(), start=1):
        image = pycolmap.Image(name=name, image_id=i, camera_id=1)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pycolmap.Rotation3d(), -xyz))
    turn = pycolmap.Rotation3d(rng.normal(0, 1, 3))
    model.transform(pycolmap.Sim3d(rng.uniform(0.01, 5), turn, rng.normal(0, 9, 3)))
    folder.mkdir(parents=True)
    model.write_binary(folder)
    return camera_centres(model)


@pytest.fixture
def flight(tmp_path: Path) -> tuple[Run, dict[str, Fix], dict[str, np.ndarray]]:
    """A run with a model in a frame of its own; positions of its photos; its places."""
    rng = np.random.default_rng(0)
    truth = {f"{i}.jpg": xyz for i, xyz in enumerate(rng.uniform(-50, 50, (9, 3)))}
    own = write_turned(truth, tmp_path / "out" / "model", rng)
    fixes = {name: Fix(*to_earth(xyz, ORIGIN)[0].tolist()) for name, xyz in truth.items()}
    run = Run(tmp_path / "out", {})
    run.made = ["model"]
    return run, fixes, own


def test_an_extended_model_stays_in_its_own_frame(
    flight: tuple[Run, dict[str, Fix], dict[str, np.ndarray]],
) -> None:
    run, fixes, own = flight
    run.results["extended"] = {}
    place_on_earth(run, fixes, "")
    assert not run.results["georeferenced"]["used"]
    assert "it was extended by more photos" in run.results["georeferenced"]["why"]
    for name, xyz in camera_centres(read_model(run.out / "model")).items():
        np.testing.assert_array_equal(xyz, own[name])


@pytest.mark.parametrize("extended", [False, True])
def test_a_model_on_earth_stays_there(
    flight: tuple[Run, dict[str, Fix], dict[str, np.ndarray]],
    extended: bool,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without positions, and with too few of them."""
    run, fixes, _ = flight
    place_on_earth(run, fixes, "")
    placed = dict(run.results["georeferenced"])
    assert placed["used"]
    on_earth = camera_centres(read_model(run.out / "model"))
    assert not caplog.records
    if extended:
        run.results["extended"] = {}
    place_on_earth(run, {}, "")
    assert "stays in metres on Earth" in caplog.text
    assert run.results["georeferenced"] == placed
    place_on_earth(run, dict(itertools.islice(fixes.items(), 4)), "")
    assert run.results["georeferenced"]["used"]
    assert json.loads((run.out / "georeference.json").read_text())["used"]
    assert run.results["georeferenced"]["origin"] == placed["origin"]
    print_place(Georeference.of(run.results["georeferenced"]))
    said = capsys.readouterr().out
    assert "where an earlier run has brought it: there are 4 positions" in said
    for name, xyz in camera_centres(read_model(run.out / "model")).items():
        np.testing.assert_array_equal(xyz, on_earth[name])


@pytest.mark.parametrize("first", [False, True])
def test_an_extended_model_keeps_what_is_known_of_its_heights(
    first: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Altitudes first and none later, or none first: then those that come later say nothing."""
    rng = np.random.default_rng(0)
    truth = {f"{i}.jpg": xyz for i, xyz in enumerate(rng.uniform(-50, 50, (9, 3)) * [1, 1, 0])}
    write_turned(truth, tmp_path / "out" / "model", rng)
    fixes = {name: Fix(*to_earth(xyz, ORIGIN)[0].tolist()) for name, xyz in truth.items()}
    run = Run(tmp_path / "out", {})
    run.made = ["model"]
    level = {name: replace(fix, altitude=None) for name, fix in fixes.items()}
    place_on_earth(run, fixes if first else level, "")
    run.results["extended"] = {}
    place_on_earth(run, level if first else fixes, "")
    placed = Georeference.of(run.results["georeferenced"])
    assert placed.heights == first
    assert placed.used
    assert placed.largest < 0.01
    assert placed.tilt_uncertainty is None
    print_place(placed)
    assert ("Heights not told" in capsys.readouterr().out) == (not first)


@pytest.mark.slow
def test_refining_a_placed_model_without_positions_keeps_its_place(
    photos: Path, scene: Path, tmp_path: Path
) -> None:
    """The model goes on from the one on Earth, which is in metres."""
    out = tmp_path / "out"
    pairs = list(itertools.combinations(find_images(photos), 2))
    config = replace(CONFIG, refine_tracks=False)
    placed = reconstruct(photos, out, pairs, TruthMatcher(scene), config).results["georeferenced"]
    config = replace(CONFIG, positions="none")
    run = reconstruct(photos, out, pairs, TruthMatcher(scene), config)
    assert run.results["georeferenced"]["used"]
    assert tuple(run.results["georeferenced"]["origin"]) == placed["origin"]
    assert json.loads((out / "georeference.json").read_text())["used"]
    assert (out / "cameras.geojson").is_file()
    # and a run that fails leaves no place
    other = replace(config, mapping=replace(config.mapping, min_tri_angle=3.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edm_hloc.mapping.mappers.find_models", lambda *_: [])
        with pytest.raises(EdmHlocError, match="No model could be made"):
            reconstruct(photos, out, pairs, TruthMatcher(scene), other)
    left = {path.name for path in out.iterdir()}
    assert left.isdisjoint({"model", "georeference.json", "cameras.geojson"})
    assert not any(file.exists() for file in uncertainty_files(out / "model"))
    assert "georeferenced" not in json.loads((out / "run.json").read_text())["results"]


@pytest.mark.slow
def test_poses_that_are_kept_or_refined_stay_on_earth(scene: Path, tmp_path: Path) -> None:
    given, images = tmp_path / "earth" / "model", scene / "images"
    shutil.copytree(scene / "truth", given)
    placed = Georeference(True, source="their GPS", origin=ORIGIN, residuals={"a": [1.0, 2.0, 0.0]})
    write_placed(placed, {"": read_model(given)}, given.parent)
    names, matcher = find_images(images), TruthMatcher(scene)
    pairs = list(itertools.combinations(names, 2))
    triangulate_model(given, images, tmp_path / "points", pairs, matcher)
    posed = PosedPhotos(read_model(given), given, images)
    refine_given_poses(posed, tmp_path / "poses", pairs, matcher)
    for out in (tmp_path / "points", tmp_path / "poses"):
        assert place_of(out / "model") == replace(placed, residuals={})
        assert len(json.loads((out / "cameras.geojson").read_text())["features"]) == len(names)
        assert collect(out).on_earth
    (given.parent / "georeference.json").unlink()
    triangulate_model(given, images, tmp_path / "points", pairs, matcher)
    assert not (tmp_path / "points" / "georeference.json").exists()
    assert not (tmp_path / "points" / "cameras.geojson").exists()


def test_parts_lie_in_one_frame(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Models of two parts of a flight, each in a frame of its own, and of three photos."""
    rng = np.random.default_rng(0)
    truth = rng.uniform([-150, -75, 75], [150, 75, 85], (23, 3))
    names = [f"{i:02d}.jpg" for i in range(23)]
    fixes = {
        name: Fix(*place)
        for name, place in zip(names, to_earth(truth, ORIGIN).tolist(), strict=True)
    }
    out = tmp_path / "out"
    parts = {"model": range(12), "model_parts/2": range(12, 20), "model_parts/3": range(20, 23)}
    for folder, numbers in parts.items():
        write_turned({names[i]: truth[i] for i in numbers}, out / folder, rng)
    run = Run(out, {"positions": "flight.csv"})
    run.made = ["model", "model_parts"]
    place_on_earth(run, fixes, "")
    placed = Georeference.of(run.results["georeferenced"])
    assert placed.used
    assert placed.parts["2"].used
    assert placed.parts["2"].origin == placed.origin
    assert not placed.parts["3"].used
    shift = to_local([Fix(*placed.origin)], ORIGIN)[0]
    for folder in ("model", "model_parts/2"):
        for name, xyz in camera_centres(read_model(out / folder)).items():
            np.testing.assert_allclose(xyz + shift, truth[names.index(name)], atol=0.01)
    features = json.loads((out / "cameras.geojson").read_text())["features"]
    assert [f["properties"].get("part") for f in features] == [None] * 12 + [2] * 8
    print_place(placed)
    said = capsys.readouterr().out
    assert "0.00 m from flight.csv, 12 of 12 agree" in said
    assert "part 2: in the same frame, 0.00 m" in said
    assert "part 3 keeps its own frame: there are 3 positions" in said
    figures = dict(place_figures(run.results["georeferenced"]))
    assert figures["Part 2"].startswith("in the same frame")


def _has_pyproj() -> bool:
    try:
        import pyproj  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.mark.parametrize(
    "at",
    ["mapping.georeference.write_placed", "mapping.output.force_to_disk", "report.earth.draw_map"],
)
def test_georeference_goes_on_where_it_was_interrupted(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    command = ["georeference", str(tmp_path / "own"), str(tmp_path / "earth"), "--positions"]
    command.append(str(write_survey(tmp_path)))
    with monkeypatch.context() as patch:
        patch.setattr(f"edm_hloc.{at}", interrupt)
        assert cli.main(command) == 130
    assert cli.main(command) == 0
    names = {"model", "georeference.json", "cameras.geojson", "map.svg"}
    assert {path.name for path in (tmp_path / "earth").iterdir()} == names


def test_a_table_without_altitudes_is_said_to_lay_the_model_level(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing tells altitudes then: not the command, its files, nor the report."""
    rng = np.random.default_rng(0)
    truth = {f"{i}.jpg": xyz for i, xyz in enumerate(rng.uniform(-50, 50, (9, 3)) * [1, 1, 0])}
    write_turned(truth, tmp_path / "own", rng)
    rows = [",".join(map(str, (n, *to_earth(xyz, ORIGIN)[0, :2]))) for n, xyz in truth.items()]
    table, earth = tmp_path / "survey.csv", tmp_path / "earth"
    table.write_text("\n".join(["name,latitude,longitude", *rows]))
    command = ["georeference", str(tmp_path / "own"), str(earth), "--positions", str(table)]
    assert cli.main([*command, *(["--crs", "EPSG:32632"] if _has_pyproj() else [])]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert " 0.0 m" not in said
    assert (
        "Heights not told: the cameras are taken to be on one level; if they are not, the model "
        "is tilted"
    ) in said
    if _has_pyproj():
        lines = (earth / "cameras.csv").read_text().splitlines()
        assert lines[0] == "name,x,y"
        assert {line.count(",") for line in lines} == {2}
    record = json.loads((earth / "georeference.json").read_text())
    figures = dict(place_figures(record))
    assert figures["Certain to"] == "not known, as heights are not told"
    assert figures["Origin"].count(",") == 1
    assert figures["Heights"].startswith("not told: the cameras are taken to be on one level")
    # where a part alone has no altitudes, it is named
    placed = Georeference.of({key: value for key, value in record.items() if key != "frame"})
    print_place(replace(placed, heights=True, parts={"2": placed, "3": placed}))
    assert "the cameras of parts 2, 3 are taken" in " ".join(capsys.readouterr().out.split())


def test_georeference_keeps_tables_of_others_and_no_stale_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earth = tmp_path / "earth"
    table = write_survey(tmp_path)
    command = ["georeference", str(tmp_path / "own"), str(earth), "--positions"]
    # those of a call with --crs do not stay beside the model of one without
    assert cli.main([*command, str(table)]) == 0
    (earth / "cameras.csv").write_text("of an earlier call")
    assert cli.main([*command, str(table)]) == 0
    assert not (earth / "cameras.csv").exists()
    assert (earth / "cameras_earlier.csv").read_text() == "of an earlier call"
    # given as positions they are not of a call
    given = table.rename(earth / "cameras.csv")
    content = given.read_text()
    assert cli.main([*command, str(given)]) == 0
    assert given.read_text() == content
    # a folder of somebody else
    other = tmp_path / "other"
    other.mkdir()
    (other / "map.svg").write_text("mine")
    assert cli.main([*command[:2], str(other), "--positions", str(given)]) == 1
    assert "map.svg is there already and was not made by" in capsys.readouterr().err
    assert [path.name for path in other.iterdir()] == ["map.svg"]
    if _has_pyproj():
        assert cli.main([*command, str(given), "--crs", "EPSG:32632"]) == 1
        assert "would be written over" in capsys.readouterr().err


def write_survey(folder: Path) -> Path:
    """A model in a frame of its own in `own`, and the table of its positions, which is given."""
    rng = np.random.default_rng(0)
    truth = {f"{i}.jpg": xyz for i, xyz in enumerate(rng.uniform(-50, 50, (9, 3)))}
    write_turned(truth, folder / "own", rng)
    rows = [",".join(map(str, (n, *to_earth(xyz, ORIGIN)[0]))) for n, xyz in truth.items()]
    table = folder / "survey.csv"
    table.write_text("\n".join(["name,latitude,longitude,altitude", *rows]))
    return table


def test_without_positions_the_model_keeps_its_frame(
    scene: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run = run_on(photos, out, scene, "none")
    assert "georeferenced" not in run.results
    own = camera_centres(read_model(out / "model"))
    # too few positions: said, and nothing is moved
    table = tmp_path / "few.csv"
    lines = [
        ",".join(map(str, (name, *to_earth(enu, ORIGIN)[0])))
        for name, enu in true_places(scene).items()
    ]
    table.write_text("\n".join(["name,latitude,longitude,altitude", *lines[:4]]))
    run = run_on(photos, out, scene, str(table))
    assert not run.results["georeferenced"]["used"]
    print_reconstruction(run, 1.0)
    assert "keeps its own frame, without scale: there are 4 positions" in capsys.readouterr().out
    for name, xyz in camera_centres(read_model(out / "model")).items():
        np.testing.assert_array_equal(xyz, own[name])
    assert "there are 4 positions" in make_report(out).read_text()
    # all of them
    table.write_text("\n".join(["name,latitude,longitude,altitude", *lines]))
    run = run_on(photos, out, scene, str(table))
    assert run.results["georeferenced"]["used"]
    assert run.results["georeferenced"]["wrong"] == ()
    table.write_text("name,latitude,longitude\nother.jpg,1,2\n")
    with pytest.raises(EdmHlocError, match="positions for none of the 7 photos"):
        run_on(photos, out, scene, str(table))
