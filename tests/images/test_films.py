"""Frames of films: evenly moved, the sharpest of their surroundings, whatever the film's speed."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from edm_hloc import cli
from edm_hloc.images.films import extract_frames
from edm_hloc.images.find import find_images

SIZE = (320, 240)


@pytest.fixture(scope="module")
def wall(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """A wide picture full of corners."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (60, 500, 3), dtype=np.uint8)
    return cv2.resize(small, (2000, 240), interpolation=cv2.INTER_LINEAR)


def write_film(
    path: Path, wall: np.ndarray, places: Sequence[float], blurred: Sequence[int] = ()
) -> Path:
    """A film that looks at x = `places` of the wall, frame after frame; some frames are blurred."""
    code = "mp4v" if path.suffix == ".mp4" else "MJPG"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), 25, SIZE)
    assert writer.isOpened()
    for number, x in enumerate(places):
        centre = (x + SIZE[0] / 2, SIZE[1] / 2)
        frame = cv2.getRectSubPix(wall, SIZE, centre)
        writer.write(cv2.GaussianBlur(frame, (0, 0), 5) if number in blurred else frame)
    writer.release()
    return path


def frames_of(film: Path, out: Path, *more: str) -> list[int]:
    assert cli.main(["frames", str(film), str(out), *more]) == 0
    numbers = [int(path.stem.removeprefix("frame_")) for path in sorted(out.glob("*.jpg"))]
    assert json.loads((out / "frames.json").read_text())["frames"] == numbers
    return numbers


def test_frames_are_evenly_moved_and_sharp(
    wall: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Slow, standing still, then fast; two of three frames are blurred."""
    places = np.concatenate(
        [np.arange(0, 150, 3), np.full(25, 150), np.arange(150, 900, 6)]
    ).astype(float)
    blurred = [i for i in range(len(places)) if i % 3]
    film = write_film(tmp_path / "walk.avi", wall, places, blurred)
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / ".frames.json.tmp").touch()  # an extraction was killed at once
    numbers = frames_of(film, tmp_path / "frames")
    said = capsys.readouterr().out
    assert f"{len(numbers)} of {len(places)} in 8 s" in said
    assert "--pairs sequential" in said
    moved = np.diff(places[numbers]) / SIZE[0]
    assert abs(np.mean(moved) - 0.08) < 0.01
    assert moved.min() > 0.02  # nothing twice: at most 0.4 of a step to each side of its moment
    assert moved.max() < 0.15
    assert np.mean([n in blurred for n in numbers]) < 0.15  # two of three by chance
    written = cv2.imread(str(tmp_path / "frames" / f"frame_{numbers[3]:06d}.jpg"))
    expected = cv2.getRectSubPix(wall, SIZE, (places[numbers[3]] + SIZE[0] / 2, SIZE[1] / 2))
    assert np.abs(written.astype(int) - expected).mean() < 10
    # twice the step gives half the frames, which replace those that were there
    half = frames_of(film, tmp_path / "frames", "--step", "0.16")
    assert abs(len(numbers) / len(half) - 2) < 0.3


def test_cuts_and_cameras_that_stand_still(
    wall: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film = write_film(tmp_path / "cut.avi", wall, [0.0] * 20 + [1400.0] * 20)
    numbers = frames_of(film, tmp_path / "cut")
    assert [n < 20 for n in numbers] == [True, False]
    said = capsys.readouterr().out
    assert "Cuts        1" in said
    assert "hardly moves" in said


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_each_frame_of_a_film_with_few_a_second_is_written(
    share: float, wall: np.ndarray, tmp_path: Path
) -> None:
    """Corners are followed over a fifth of the picture at most."""
    places = np.arange(0, 1600, share * SIZE[0])
    film = write_film(tmp_path / "lapse.avi", wall, places.tolist())
    assert frames_of(film, tmp_path / "lapse") == list(range(len(places)))
    # what hides the picture for a moment, or blurs it, gives none
    walk = np.arange(0, 300, 3).tolist()
    plain = frames_of(write_film(tmp_path / "a.avi", wall, walk), tmp_path / "a")
    walk[50:55] = [1500.0] * 5
    hidden = frames_of(write_film(tmp_path / "b.avi", wall, walk), tmp_path / "b")
    assert len(hidden) == pytest.approx(len(plain), abs=1)
    assert not set(hidden) & set(range(50, 55))


def test_any_name_of_a_film_and_what_is_not_ours_in_the_folder(
    wall: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_film(tmp_path / "film.mp4", wall, np.arange(0, 300, 6).tolist())
    film = (tmp_path / "film.mp4").rename(tmp_path / "2024-05-01T12:30#1 %d é.mp4")
    numbers = frames_of(Path(film.name), tmp_path / "out")
    mine = [tmp_path / "out" / name for name in ("frame_000006_edited.jpg", "frame_12.jpg")]
    for path in mine:
        path.write_text("mine")
    assert cli.main(["frames", film.name, "out", "--step", "0.2"]) == 0
    assert all(path.read_text() == "mine" for path in mine)
    assert len(list((tmp_path / "out").glob("*.jpg"))) < len(numbers)


def test_files_of_others_under_the_names_of_frames_stay(
    wall: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film, out = write_film(tmp_path / "a.avi", wall, np.arange(0, 300, 6).tolist()), tmp_path / "o"
    numbers = frames_of(film, out)
    mine = out / "frame_1234567.jpg"
    mine.write_text("mine")
    assert extract_frames(film, out).written == tuple(numbers)  # nothing is to be written
    missing = out / f"frame_{numbers[1]:06d}.jpg"
    missing.unlink()
    for more in ((), ("--step", "0.2")):
        assert cli.main(["frames", str(film), str(out), *more]) == 1
        said = capsys.readouterr().err
        assert f"{mine} has the name of a frame but is none that edm-hloc has written" in said
    assert mine.read_text() == "mine"
    assert len(list(out.glob("*.jpg"))) == len(numbers)
    mine.unlink()
    assert frames_of(film, out) == numbers


def test_frames_that_are_there_stay_as_they_are(wall: np.ndarray, tmp_path: Path) -> None:
    """Their times tell the next reconstruction that it need not match them again."""
    film, out = write_film(tmp_path / "a.avi", wall, np.arange(0, 300, 6).tolist()), tmp_path / "o"
    times = [(out / f"frame_{n:06d}.jpg").stat().st_mtime_ns for n in frames_of(film, out)]
    again = frames_of(film, out)
    assert [(out / f"frame_{n:06d}.jpg").stat().st_mtime_ns for n in again] == times
    (out / f"frame_{again[1]:06d}.jpg").unlink()  # so that not all are there
    assert frames_of(film, out) == again
    write_film(film, wall, np.arange(0, 600, 6).tolist())  # another film of this name
    assert len(frames_of(film, out)) > len(again)


def test_an_interrupted_extraction_says_that_it_begins_again(
    wall: np.ndarray,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    film, out = write_film(tmp_path / "a.avi", wall, np.arange(0, 300, 6).tolist()), tmp_path / "o"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "edm_hloc.images.films._Chooser.end", lambda _: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(SystemExit) as end:
            cli.main(["frames", str(film), str(out)])
    assert end.value.code == 130
    said = capsys.readouterr().err
    assert "begins again at the start of the film" in said
    assert "goes on" not in said
    written = {path.name for path in out.glob("*.jpg")}
    recorded = json.loads((out / "frames.json").read_text())["frames"]
    assert written
    assert written == {f"frame_{number:06d}.jpg" for number in recorded}
    with caplog.at_level(logging.WARNING, "edm_hloc"):
        assert set(find_images(out)) == written
    assert f"{out} has only a part of the frames of {film}" in caplog.text
    assert len(frames_of(film, out, "--step", "0.16")) < len(written)  # these are gone
    assert len(frames_of(film, out)) > 10
    caplog.clear()
    find_images(out)
    assert not caplog.text


@pytest.mark.parametrize("ending", [".avi", ".mp4", ".mkv"])
def test_a_film_that_cannot_be_read_as_a_whole_is_told(
    ending: str, wall: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    film = write_film(tmp_path / f"film{ending}", wall, np.arange(0, 300, 6).tolist())
    assert extract_frames(film, tmp_path / "whole").frames == 50
    assert not caplog.text
    content = film.read_bytes()
    half, hole = len(content) // 2, len(content) // 5
    if ending == ".mp4":  # its table of frames is at the end
        film.write_bytes(content[:half] + bytes(hole) + content[half + hole :])
    else:
        film.write_bytes(content[:half])
    found = extract_frames(film, tmp_path / "damaged")
    assert f"{film} should have 50 frames, and {found.frames} of them can be read" in caplog.text
    # what comes after a damaged place is there, under its own number
    assert (found.written[-1] > 45) == (ending == ".mp4")
    assert (found.frames > 30) == (ending == ".mp4")


def test_what_is_no_film_or_not_ours_is_told(
    wall: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film = write_film(tmp_path / "film.avi", wall, [0.0] * 3)
    (tmp_path / "text.mp4").write_text("no film")
    (tmp_path / "empty.mp4").touch()
    cv2.imwrite(str(tmp_path / "photo.jpg"), wall[:240, :320])
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "frame_1.jpg").write_text("of somebody else")
    for arguments, message in (
        (("text.mp4", "out"), "Cannot read the film"),
        (("none.mp4", "out"), "No such file"),
        (("empty.mp4", "out"), "the file is empty. Copy it again."),
        (("photo.jpg", "of a photo"), "has 1 frames that can be read: it is a picture"),
        (("film.avi", "mine"), "holds other things than frames"),
        (("film.avi", "text.mp4"), "is a file"),
    ):
        film_path, out = (str(tmp_path / name) for name in arguments)
        assert cli.main(["frames", film_path, out]) == 1
        assert message in capsys.readouterr().err
    assert (mine / "frame_1.jpg").read_text() == "of somebody else"
    assert not (tmp_path / "out").exists()
    assert film.is_file()
