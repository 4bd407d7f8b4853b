"""COLMAP's binary models: their content as arrays, and what may be wrong with their files.

COLMAP reads past the end of a truncated file, and may then never return. In Python each keypoint
and point of a model is an object of its own, ten times slower to read than these files.
"""

from __future__ import annotations

import functools
import math
import struct
import tempfile
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.errors import EdmHlocError, NoRoomError
from edm_hloc.base.files import scratch_folder

_KEYPOINT = np.dtype([("xy", "<f8", 2), ("point", "<u8")])
_POINT = np.dtype([("id", "<u8"), ("xyz", "<f8", 3)])  # what a record begins with
_NO_POINT = np.uint64(2**64 - 1)
_END, _TWICE = "ends too early", "lists {} {} twice"


class _FaultError(Exception):
    """What is wrong with a file."""


@dataclass(frozen=True)
class ModelArrays:
    """The points of a model, and where its photos see them.

    Attributes:
        ids: (T,) int64 of the points, ascending.
        xyz: (T, 3) in the world.
        image: (N,) int64, id of the image of each observation; those of an image are together.
        index: (N,) int64, number of its keypoint there, ascending in each image.
        point: (N,) int64, id of its point.
        xy: (N, 2) its pixel, COLMAP's frame.
    """

    ids: np.ndarray
    xyz: np.ndarray
    image: np.ndarray
    index: np.ndarray
    point: np.ndarray
    xy: np.ndarray

    @classmethod
    def of(cls, model: pycolmap.Reconstruction) -> ModelArrays:
        """Those of a model in memory, which is written to a temporary folder.

        Raises:
            NoRoomError: the temporary folder cannot be written.
        """
        try:
            with scratch_folder() as folder:
                model.write_binary(folder)
                return cls._read(folder)
        except (OSError, ValueError, struct.error) as error:  # a full disk cuts files off
            raise NoRoomError(
                f"Cannot write a model to {tempfile.gettempdir()}: free some disk space there, or "
                "set TMPDIR to another folder."
            ) from error

    @classmethod
    def _read(cls, folder: Path) -> ModelArrays:
        images = _mapped(folder / "images.bin")
        (count,) = struct.unpack_from("<Q", images)
        image, index, point, xy = [], [], [], []
        position = 8
        for _ in range(count):
            number, end = _image(images, position)
            name_end = images.find(b"\0", position + 64)
            (length,) = struct.unpack_from("<Q", images, name_end + 1)
            keypoints = np.frombuffer(images, _KEYPOINT, length, name_end + 9)
            seen = np.flatnonzero(keypoints["point"] != _NO_POINT)
            image.append(np.full(len(seen), number, np.int64))
            index.append(seen)
            point.append(keypoints["point"][seen].astype(np.int64))
            xy.append(keypoints["xy"][seen])
            position = end
        points = _mapped(folder / "points3D.bin")
        (count,) = struct.unpack_from("<Q", points)
        starts, position = np.zeros(count, np.int64), 8
        for k in range(count):
            starts[k] = position
            _, position = _point(points, position)
        whole = np.frombuffer(points, np.uint8)
        record = whole[starts[:, None] + np.arange(_POINT.itemsize)].reshape(-1).view(_POINT)
        record = record[np.argsort(record["id"])]
        none = np.zeros(0, np.int64)
        return cls(
            ids=record["id"].astype(np.int64),
            xyz=record["xyz"].reshape(-1, 3),
            image=np.concatenate([none, *image]),
            index=np.concatenate([none, *index]),
            point=np.concatenate([none, *point]),
            xy=np.concatenate([np.zeros((0, 2)), *xy]),
        )


def _mapped(file: Path) -> mmap:
    with file.open("rb") as opened:
        return mmap(opened.fileno(), 0, access=ACCESS_READ)


def check_binary_model(path: Path) -> None:
    """Raises EdmHlocError, with the file, if one of a binary model is damaged."""
    for name, (kind, record) in _RECORDS.items():
        file = path / name
        try:
            # Mapped, not read: most bytes of a large model are skipped.
            with file.open("rb") as opened, mmap(opened.fileno(), 0, access=ACCESS_READ) as data:
                _check_file(data, kind, record)
        except (struct.error, ValueError, RuntimeError, OverflowError):  # as of an empty file
            raise _damaged(path, name, _END) from None
        except _FaultError as fault:
            raise _damaged(path, name, str(fault)) from None
        except OSError:
            continue  # it is missing, as rigs and frames may be, or COLMAP's own error says why


def _check_file(data: mmap, kind: str, record: Callable[[mmap, int], tuple[int, int]]) -> None:
    (count,) = struct.unpack_from("<Q", data)
    position = 8
    ids = array("Q")
    for _ in range(count):
        number, position = record(data, position)
        ids.append(number)
    if position > len(data):
        raise _FaultError(_END)
    found, times = np.unique(np.frombuffer(ids, np.uint64), return_counts=True)
    if len(found) < count:
        raise _FaultError(_TWICE.format(kind, found[times > 1][0]))


def _damaged(path: Path, name: str, reason: str) -> EdmHlocError:
    return EdmHlocError(
        f"The COLMAP model in {path} is damaged: {name} {reason}. Copy it again, or make it again."
    )


@functools.cache
def _parameters(model_id: int) -> int:
    model = pycolmap.CameraModelId(model_id)
    return len(pycolmap.Camera.create_from_model_id(1, model, 1.0, 2, 2).params)


def _camera(data: mmap, start: int) -> tuple[int, int]:
    number, model = struct.unpack_from("<Ii", data, start)
    return number, start + 24 + 8 * _parameters(model)


def _image(data: mmap, start: int) -> tuple[int, int]:
    (number,) = struct.unpack_from("<I", data, start)
    name = data.find(b"\0", start + 64)  # after id, rotation, translation and camera
    if name < 0:
        raise ValueError("the name has no end")
    points = name + 1
    return number, points + 8 + 24 * int(struct.unpack_from("<Q", data, points)[0])


def _point(data: mmap, start: int) -> tuple[int, int]:
    number, x, y, z, _, _, length = struct.unpack_from("<Q3d3sdQ", data, start)
    if not math.isfinite(x + y + z):
        raise _FaultError(f"has a point {number} whose position is not finite")
    return number, start + 51 + 8 * length


def _rig(data: mmap, start: int) -> tuple[int, int]:
    number, sensors = struct.unpack_from("<II", data, start)
    position = start + 8
    if sensors:
        position += 8  # the reference sensor's kind and id
    for _ in range(1, sensors):
        (has_pose,) = struct.unpack_from("<B", data, position + 8)
        position += 9
        if has_pose:
            if not all(map(math.isfinite, struct.unpack_from("<7d", data, position))):
                raise _FaultError(f"has a sensor in rig {number} whose pose is not finite")
            position += 56
    return number, position


def _frame(data: mmap, start: int) -> tuple[int, int]:
    number, images = struct.unpack_from("<I60xI", data, start)
    return number, start + 68 + 16 * images


# What a file lists, and a function that gives the id of the record at a position and its end
_RECORDS: dict[str, tuple[str, Callable[[mmap, int], tuple[int, int]]]] = {
    "cameras.bin": ("camera", _camera),
    "rigs.bin": ("rig", _rig),
    "frames.bin": ("frame", _frame),
    "images.bin": ("image", _image),
    "points3D.bin": ("point", _point),
}
