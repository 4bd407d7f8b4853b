"""Frames of a film that are worth matching: sharp ones, an even part of the picture apart.

The movement between frames is the median displacement of corners that are followed from frame to
frame (pyramidal Lucas–Kanade), as a share of the picture's longer side. Each time the picture has
moved by a step, the sharpest of the frames around that moment is written: the one with the largest
variance of the Laplacian. So a camera that stands still gives one frame, and a fast one many.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import holds_more_than, make_folder, require_file, write_whole
from edm_hloc.base.fingerprint import file_stamp
from edm_hloc.base.progress import StepProgress
from edm_hloc.images.find import FRAMES_RECORD

logger = logging.getLogger(__name__)

_NAME = re.compile(r"frame_\d{6,}\.jpg")
_SIDE = 480  # px of the longer side of the copies in which movement is measured
_CORNERS = 200
_FEWEST = 12  # corners that can be followed, and a fifth of them: with fewer it is another picture
_UNFOLLOWED = 8  # frames in a row that show another picture, after which there was a cut
_BLURRED = 0.25  # of the last followed frame's sharpness: a frame with less is taken for blurred
_FOLLOWED = 1.0  # px by which a corner may miss its place when it is followed back
_WINDOW = 0.4  # of a step to each side of it, from which the sharpest frame is taken
_QUALITY = 95  # of JPEG
_MISSED = 250  # frames in a row that cannot be read, after which the film is at its end
_WHOLE = 0.95  # of the frames that a film should have, and of its time


@dataclass(frozen=True)
class FilmFrames:
    """The frames that were written.

    Attributes:
        written: their numbers in the film, from 0.
        frames: number of frames in the film that can be read.
        seconds: the film's length by its frame rate; 0 if it tells none.
        cuts: number of places where the picture changed altogether.
    """

    written: tuple[int, ...]
    frames: int
    seconds: float
    cuts: int


def extract_frames(film: Path, out: Path, step: float = 0.08) -> FilmFrames:
    """Writes frames of a film as `out/frame_000123.jpg`, by their number in the film.

    Warns where much of the film cannot be read. Frames that are there already, of the same film and
    step, are left as they are, so that nothing is matched again because of their times.

    Args:
        film: in any format that OpenCV reads; turned upright as the film tells.
        out: folder, empty or of an earlier extraction of the same film.
        step: movement of the picture from one frame to the next that is written, as a share of
            its longer side.

    Raises:
        EdmHlocError: the film cannot be read, or the folder holds other things.
    """
    try:
        require_file(film)
    except OSError as error:
        raise EdmHlocError(f"Cannot read the film {film}: {error.strerror or error}.") from error
    if film.is_file() and film.stat().st_size == 0:
        raise EdmHlocError(f"Cannot read the film {film}: the file is empty. Copy it again.")
    # absolute, as FFmpeg takes what comes before the colon of "12:30.mp4" for a protocol
    capture = cv2.VideoCapture(str(film.absolute()))
    try:
        if not capture.isOpened():
            raise EdmHlocError(
                f"Cannot read the film {film}: it is none, or of a kind that OpenCV does not know. "
                "Convert it: ffmpeg -i FILM -c:v libx264 film.mp4."
            )
        made_from = {"film": str(film.resolve()), "stamp": file_stamp(film), "step": step}
        return _claim(film, out, made_from) or _extract(capture, film, out, made_from)
    finally:
        capture.release()


def _claim(film: Path, out: Path, made_from: dict[str, Any]) -> FilmFrames | None:
    """Makes the folder, or finds the frames in it.

    Args:
        film: the film.
        out: the folder.
        made_from: what decides which frames are chosen, for the record.

    Returns:
        The frames, if all are there. Others of an earlier extraction of the film are removed.

    Raises:
        EdmHlocError: it holds other things, or files of others under the names of frames.
    """
    if out.exists() and not out.is_dir():
        raise EdmHlocError(f"{out} is a file: choose another folder for the frames.")
    if out.is_dir() and holds_more_than(out, FRAMES_RECORD):
        try:
            record = json.loads((out / FRAMES_RECORD).read_text("utf-8"))
            ours = record["film"] == made_from["film"]
            listed = {_path(out, number) for number in record.get("frames", ())}
        except (OSError, ValueError, KeyError, TypeError):
            ours = False
        if not ours:
            raise EdmHlocError(
                f"{out} is there already and holds other things than frames of {film}: choose a "
                "new folder."
            )
        same = json.loads(json.dumps(made_from)).items() <= record.items()
        if same and "found" in record and all(path.is_file() for path in listed):
            return FilmFrames(tuple(record["frames"]), **record["found"])
        for path in sorted(out.iterdir()):
            if _NAME.fullmatch(path.name) and path not in listed:
                raise EdmHlocError(
                    f"{path} has the name of a frame but is none that edm-hloc has written, and is "
                    "not written over: move it, or choose a new folder."
                )
        for path in listed:
            path.unlink(missing_ok=True)
    make_folder(out)
    write_whole(out / FRAMES_RECORD, json.dumps(made_from))
    return None


def _extract(
    capture: cv2.VideoCapture, film: Path, out: Path, made_from: dict[str, Any]
) -> FilmFrames:
    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    rate = float(capture.get(cv2.CAP_PROP_FPS))
    chooser = _Chooser(made_from["step"])
    written: list[int] = []
    frames, last = 0, -1
    seconds = 0.0  # of the last frame that can be read, where the film tells

    def write(number: int, picture: np.ndarray) -> None:
        written.append(number)  # recorded before it is there: what is not listed is not ours
        write_whole(out / FRAMES_RECORD, json.dumps(made_from | {"frames": written}))
        _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        write_whole(_path(out, number), data.tobytes())

    with StepProgress("Choosing frames", "frame", total if total > 0 else None) as progress:
        for number, picture in _pictures(capture):
            frames, last = frames + 1, number
            seconds = float(capture.get(cv2.CAP_PROP_POS_MSEC)) / 1000
            for chosen in chooser.add(number, picture):
                write(*chosen)
                progress.note = f"{len(written)} written"
            progress.update()
        for chosen in chooser.end():
            write(*chosen)
    if frames < 2:
        for number in written:
            _path(out, number).unlink()
        raise EdmHlocError(
            f"{film} has {frames} frames that can be read: it is a picture, or damaged."
        )
    # some films tell their length only, so that their number of frames is a guess
    ends_early = rate <= 0 or seconds < _WHOLE * total / rate
    if frames < _WHOLE * total and (ends_early or last >= frames):
        logger.warning(
            "%s should have %d frames, and %d of them can be read: it is damaged or was cut off. "
            "Copy it again; or save what there is of it with ffmpeg -i FILM -c:v libx264 film.mp4, "
            "and take that.",
            film,
            total,
            frames,
        )
    length = frames / rate if rate > 0 else 0.0
    found: dict[str, Any] = {"frames": frames, "seconds": length, "cuts": chooser.cuts}
    write_whole(out / FRAMES_RECORD, json.dumps(made_from | {"frames": written, "found": found}))
    return FilmFrames(tuple(written), **found)


def _pictures(capture: cv2.VideoCapture) -> Iterator[tuple[int, np.ndarray]]:
    """Number and picture (H, W, 3) BGR of each frame; those that are damaged are passed over."""
    number = missed = 0
    while missed < _MISSED:
        there, picture = capture.read()
        missed = 0 if there else missed + 1
        if there:
            yield number, picture
        number += 1


def _path(out: Path, number: int) -> Path:
    return out / f"frame_{number:06d}.jpg"


@dataclass(frozen=True)
class _Frame:
    """A frame, its small grey copy, and the variance of the Laplacian in that."""

    number: int
    picture: np.ndarray
    small: np.ndarray
    sharpness: float

    @classmethod
    def of(cls, number: int, picture: np.ndarray) -> _Frame:
        small = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
        scale = _SIDE / max(picture.shape[:2])
        if scale < 1:
            small = cv2.resize(small, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        return cls(number, picture, small, float(cv2.Laplacian(small, cv2.CV_64F).var()))


class _Chooser:
    """Follows the picture and keeps the sharpest frame of each window.

    Args:
        step: movement from one window's middle to the next, as a share of the longer side.
    """

    def __init__(self, step: float) -> None:
        self._step = step
        self._before: _Frame | None = None  # the last one that was followed
        self._unfollowed = 0
        self._other: _Frame | None = None  # the last sharp one of those that were not
        self._moved = 0.0  # since the last window's middle
        self._best: _Frame | None = None
        self.cuts = 0

    def add(self, number: int, picture: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """The frames, number and picture, that are chosen now that this one is known."""
        frame = _Frame.of(number, picture)
        movement: float | None = 0.0
        if self._before is not None:
            movement = _movement(self._before.small, frame.small)
        if movement is not None:
            yield from self._follow(frame, movement)
            return
        # it may be blurred, or of somebody who passes by: the next is compared instead
        self._unfollowed += 1
        sharp = self._before is not None and frame.sharpness > _BLURRED * self._before.sharpness
        if sharp and self._other is not None and self._jumps(self._other, frame):
            # few frames a second, each of another place
            yield from self._cut(self._other)
            yield from self.add(number, picture)
        elif self._unfollowed == _UNFOLLOWED:
            yield from self._cut(frame)
        elif sharp:
            self._other = frame

    def end(self) -> Iterator[tuple[int, np.ndarray]]:
        """The frames that are chosen now that the film is at its end."""
        if self._other is not None:
            yield from self._cut(self._other)
        yield from self._close()

    def _jumps(self, before: _Frame, after: _Frame) -> bool:
        """Whether the picture moves by more than a step from a frame to the next."""
        movement = _movement(before.small, after.small)
        return movement is None or movement > self._step

    def _cut(self, frame: _Frame) -> Iterator[tuple[int, np.ndarray]]:
        """Goes on with a picture that is not followed: what is new is worth a frame."""
        self.cuts += 1
        yield from self._follow(frame, 2 * self._step)

    def _follow(self, frame: _Frame, movement: float) -> Iterator[tuple[int, np.ndarray]]:
        self._before, self._unfollowed, self._other = frame, 0, None
        self._moved += movement
        window = _WINDOW * self._step
        if self._moved > window:  # the window is left, or reached again after a step
            yield from self._close()
            if self._moved < self._step - window:
                return
            if self._moved > self._step + window:  # so fast that a window was jumped over
                self._moved = self._step
            self._moved -= self._step
        if self._best is None or frame.sharpness > self._best.sharpness:
            self._best = frame

    def _close(self) -> Iterator[tuple[int, np.ndarray]]:
        """The frame of the window that is open, if there is one."""
        if self._best is not None:
            best, self._best = self._best, None
            yield best.number, best.picture


def _movement(before: np.ndarray, after: np.ndarray) -> float | None:
    """Median displacement between two grey pictures as a share of the longer side.

    0 where there is nothing to follow in the first; None where too little of it is found again.
    """
    corners = cv2.goodFeaturesToTrack(before, _CORNERS, 0.01, 8)
    if corners is None or len(corners) < _FEWEST:
        return 0.0
    guess: Any = None  # which OpenCV's types do not know of
    there, found, _ = cv2.calcOpticalFlowPyrLK(before, after, corners, guess)
    back, found_back, _ = cv2.calcOpticalFlowPyrLK(after, before, there, guess)
    off = np.linalg.norm(back - corners, axis=2)[:, 0]
    good = (found[:, 0] == 1) & (found_back[:, 0] == 1) & (off < _FOLLOWED)
    if good.sum() < max(_FEWEST, 0.2 * len(corners)):
        return None
    moved = np.linalg.norm(there - corners, axis=2)[good, 0]
    return float(np.median(moved)) / max(before.shape)
