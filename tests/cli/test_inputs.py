"""Which photos a command takes, and sizes that it refuses."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from edm_hloc import cli
from edm_hloc.images.find import find_images
from edm_hloc.pairs.files import read_pairs
from tests.fakes import FakeMatcher
from tests.scenes import TruthMatcher


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_pictures_beyond_reason_are_refused(
    scene: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for size in ((8192, 8192), (99_999_999, 20), (4, 4)):
        assert run("show", scene / "truth", "--size", *size) == 1
        assert "--size must be" in capsys.readouterr().err


def test_photos_of_a_list_without_the_output_and_masks_among_them(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.options, "make_matcher", lambda args: FakeMatcher())
    photos = tmp_path / "photos"
    shutil.copytree(scene / "images", photos)
    names = find_images(photos)
    (photos / "masks").mkdir()
    for name in names:
        Image.new("L", (8, 6), 255).save(photos / "masks" / f"{name}.png")
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(names[:4]))
    (photos / "out" / "views").mkdir(parents=True)
    Image.new("L", (8, 6)).save(photos / "out" / "views" / "top.png")
    out = tmp_path / "pairs.txt"
    assert run("pairs", photos, out, "--image-list", listed, "--pairs", "sequential") == 0
    assert "Photos      4 in" in capsys.readouterr().out
    arguments = ["--masks", photos / "masks", "--known", scene / "truth"]
    assert run("reconstruct", photos, photos / "out", *arguments) == 1  # of three matches a pair
    assert f"Photos      {len(names)} in {photos}, 21 pairs" in capsys.readouterr().out
    assert len(read_pairs(photos / "out" / "pairs.txt")) == 21


@pytest.fixture
def truth(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.options, "make_matcher", lambda args: TruthMatcher(scene))


@pytest.mark.usefixtures("truth")
def test_a_picture_of_matches_does_not_replace_the_files_of_a_run_nor_the_photos(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(scene / "images", images)
    a, b = sorted(images.iterdir())[:2]
    listed = tmp_path / "pairs.txt"
    listed.write_text(f"{a.name} {b.name}\n")
    assert run("match-pairs", images, listed, out) == 0
    shard = next((out / "raw_matches").glob("*.h5"))
    before = {path: path.read_bytes() for path in (*out.glob("*.h5"), a, b)}
    capsys.readouterr()
    for picture in (
        out / "matches.png",
        out / "features.jpg",
        a,
        images / ".." / "images" / b.name,
    ):
        assert run("match", a, b, "--out", picture) == 1
        assert "choose another name" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before
    assert not (out / "matches.png").exists()
    assert shard.exists()

    picture = tmp_path / "m.png"
    picture.with_suffix(".h5").touch()
    for _ in range(2):  # what it has made itself is replaced
        assert run("match", a, b, "--out", picture) == 0
    assert run("match", a, b, "--out", tmp_path / ".png") == 1
    assert "Cannot write a picture" in capsys.readouterr().err


def test_lists_do_not_replace_what_they_are_made_from(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = scene / "images"
    listed, descriptors = tmp_path / "list.txt", tmp_path / "d.h5"
    listed.write_text("\n".join(find_images(images)))
    with h5py.File(descriptors, "w") as h5:
        for number, name in enumerate(find_images(images)):
            h5.create_group(name)["global_descriptor"] = np.eye(7)[number]
    before = listed.read_bytes(), descriptors.read_bytes()
    assert run("pairs", images, listed, "--image-list", listed) == 1
    for out in (descriptors, listed):
        assert run("retrieve", descriptors, out, "--query-list", listed) == 1
    assert capsys.readouterr().err.count("is read and would be written over") == 3
    assert (listed.read_bytes(), descriptors.read_bytes()) == before


def test_numbers_go_into_a_new_folder_and_not_into_the_model(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = scene / "truth"
    before = {path: path.read_bytes() for path in truth.iterdir()}
    for path in before:
        assert run("compare", truth, truth, "--json", path) == 1
        assert "is read and would be written over" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before
    assert run("compare", truth, truth, "--json", tmp_path / "new" / "numbers.json") == 0
    assert json.loads((tmp_path / "new" / "numbers.json").read_text())["registered"] == 7


@pytest.mark.skipif(sys.platform == "win32", reason="a folder in use cannot be removed there")
def test_a_folder_that_was_removed_under_the_shell_gets_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for arguments in (("weights", "list"), ("show", tmp_path)):
        assert run(*arguments) == 1
        assert "is not there any more" in capsys.readouterr().err


def test_no_file_is_put_in_place_of_a_folder_or_pipe(
    scene: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    outs = [".", "/", "link"]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        outs.append("pipe")
    for out in outs:
        assert run("pairs", scene / "images", out) == 1
        assert f"Cannot write {Path(out)}: " in capsys.readouterr().err
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "pipe").is_fifo() == hasattr(os, "mkfifo")


def test_transforms_of_photos_that_are_not_there(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "transforms.json"
    assert run("export-model", scene / "truth", out, "--images", tmp_path / "nowhere") == 1
    assert "None of the 7 photos of the model is in" in capsys.readouterr().err
    assert not out.exists()
    assert run("export-model", scene / "truth", out, "--images", scene / "images") == 0


def test_names_that_the_output_cannot_show(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", output)
    assert cli.main(["pairs", str(scene / "images"), "é😀.txt"]) == 0
    assert capsys.readouterr().err == ""
    assert b"\\xe9\\U0001f600.txt" in output.detach().getvalue()


def test_models_of_others_are_not_replaced(
    scene: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path / "other" / "model"
    shutil.copytree(scene / "truth", other)
    before = {path.name: path.read_bytes() for path in other.iterdir()}
    for record in (None, "run.json"):  # of a run, which may have a record of its place too
        if record:
            (other.parent / "georeference.json").touch()
            (other.parent / record).touch()
        assert run("georeference", scene / "truth", other.parent) == 1
        assert "choose another folder" in capsys.readouterr().err
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    (tmp_path / "positions.csv").write_text("name,latitude,longitude,altitude\n")
    given = ["--positions", tmp_path / "positions.csv"]
    assert run("georeference", scene / "truth", loop, *given) == 1
    assert "edm-hloc: " in capsys.readouterr().err
    monkeypatch.chdir(other)
    for out in (".", ".."):
        assert run("refine-model", ".", scene / "images", out) == 1
        assert f"in place of the folder {out}: choose another" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in other.iterdir()} == before


def test_poses_of_photos_that_cannot_be_read_and_from_pipes(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(scene / "images", images)
    for path in sorted(images.iterdir())[2:]:
        path.write_bytes(b"no photo")
    poses = tmp_path / "transforms.json"
    assert run("export-model", scene / "truth", poses, "--images", scene / "images") == 0
    for file in (poses, scene / "truth"):
        assert run("refine-poses", file, images, out) == 1
        assert f"2 of the 7 photos in {images}" in capsys.readouterr().err
    assert not out.exists()
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.json")
        assert run("refine-poses", tmp_path / "pipe.json", images, out) == 1
        assert "pipe.json: it is a pipe, not a file" in capsys.readouterr().err


def test_an_empty_list_of_queries_is_no_right_submission(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("poses.txt", "queries.txt"):
        (tmp_path / name).write_text("# nothing\n")
    assert run("check-submission", tmp_path / "poses.txt", "--queries", tmp_path / "queries.txt")
    assert f"The list of queries {tmp_path / 'queries.txt'} is empty" in capsys.readouterr().err


def test_names_of_queries_with_spaces_are_found_in_a_list_of_intrinsics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    poses, queries = tmp_path / "poses.txt", tmp_path / "queries.txt"
    poses.write_text("my photo.jpg 1 0 0 0 1 2 3\n")
    queries.write_text("night/my photo.jpg SIMPLE_RADIAL 640 480 500 320 240 0\n")
    assert run("check-submission", poses, "--queries", queries) == 0
    assert "one pose for each of 1 queries" in capsys.readouterr().out
    queries.write_text("night/my photo.jpg\n")  # without intrinsics
    assert run("check-submission", poses, "--queries", queries) == 0
    assert "one pose for each of 1 queries" in capsys.readouterr().out
