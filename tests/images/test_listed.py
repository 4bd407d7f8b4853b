"""Photos by their names in lists of intrinsics and positions."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.images.gps import Fix, matching_names
from edm_hloc.images.intrinsics import load_intrinsics
from edm_hloc.images.listed import listed_names


@pytest.mark.parametrize(
    ("listed", "names", "found"),
    [
        (["a.jpg", "b.jpg"], ["a.jpg", "c.jpg"], {"a.jpg": "a.jpg"}),
        (["a.jpg", "images/x/b.jpg"], ["x/a.jpg", "x/b.jpg"], ["a.jpg", "images/x/b.jpg"]),
        (["./a.jpg", "x/b", "c.d"], ["a.jpg", "b.png", "c.d.png"], ["./a.jpg", "x/b", "c.d"]),
        (["cam0/1.jpg"], ["cam0/1.jpg", "cam1/1.jpg"], {"cam0/1.jpg": "cam0/1.jpg"}),
        (["cam0/1.jpg"], ["cam1/1.jpg"], {}),  # of another camera
        (["1.jpg"], ["1.jpg", "cam1/1.jpg"], {"1.jpg": "1.jpg"}),
        (["1.jpg", "2"], ["cam0/1.jpg", "cam1/1.jpg", "2.jpg", "2.png"], {}),
        (["cam0/1.jpg", "cam1/1.jpg"], ["1.jpg"], {}),
        (["1.jpg", "1"], ["x/1.jpg"], ["1.jpg"]),
        (["1.png"], ["1.jpg"], {}),
        (["/d/a/1.jpg", "/d/b/1.jpg"], ["a/1.jpg", "b/1.jpg"], ["/d/a/1.jpg", "/d/b/1.jpg"]),
        (["C:\\d\\b\\1"], ["a/1.jpg", "b/1.jpg"], {"b/1.jpg": "C:\\d\\b\\1"}),
        (["a/1.jpg", "./b/1.jpg"], ["d/a/1.jpg", "d/b/1.jpg"], ["a/1.jpg", "./b/1.jpg"]),
        (["d/1.jpg", "d/b/1.jpg"], ["1.jpg", "b/1.jpg"], ["d/1.jpg", "d/b/1.jpg"]),
        (["a/1.jpg"], ["d/a/1.jpg", "e/a/1.jpg"], {}),
        # in the folder b, of which the list lacks the second photo
        (["d/a/1.jpg", "d/a/2.jpg", "d/b/1.jpg"], ["1.jpg", "2.jpg"], {}),
        (["1.jpg", "a/1.jpg", "a/2.jpg"], ["1.jpg", "2.jpg"], {"1.jpg": "1.jpg"}),
    ],
)
def test_names_that_may_be_of_another_photo_are_not_taken(
    listed: list[str], names: list[str], found: dict[str, str] | list[str]
) -> None:
    if isinstance(found, list):  # in the order of the photos
        found = dict(zip(names, found, strict=True))
    assert listed_names(listed, names) == found


@pytest.mark.parametrize("front", ["images/", "./", "/data/scene/images/", "C:\\\\scene\\\\"])
def test_cameras_of_a_rig_in_a_transforms_json(front: str, tmp_path: Path) -> None:
    names = [f"cam{camera}/{number}.jpg" for camera in (0, 1) for number in (1, 2)]
    frame = {"w": 64, "h": 48, "fl_y": 50.0, "cx": 32.0, "cy": 24.0}
    frames = [
        {**frame, "file_path": front + name, "fl_x": 50.0 + i} for i, name in enumerate(names)
    ]
    path = tmp_path / "transforms.json"
    path.write_text(json.dumps({"frames": frames}))
    known = load_intrinsics(path, names)
    assert [known[name].params[0] for name in names] == [50.0, 51.0, 52.0, 53.0]
    # of photos whose folder cannot be told nothing is taken
    with pytest.raises(EdmHlocError, match=r"for none of the 2 images.* like '1.jpg'"):
        load_intrinsics(path, ["1.jpg", "2.jpg"])


def test_photos_of_another_camera_get_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["cam0/1.jpg", "cam1/1.jpg", "cam1/2.jpg"]
    path = tmp_path / "list.txt"
    path.write_text("cam0/1.jpg PINHOLE 640 480 5 5 5 5\n2.jpg PINHOLE 64 48 5 5 5 5\n")
    with caplog.at_level(logging.WARNING):
        known = load_intrinsics(path, names)
    assert [(name, camera.width) for name, camera in known.items()] == [
        ("cam0/1.jpg", 640),
        ("cam1/2.jpg", 64),
    ]
    assert f"{path} has intrinsics for 2 of 3 images, and for one, cam1/1.jpg, none." in caplog.text
    fixes = {"1.jpg": Fix(1.0, 2.0), "2": Fix(3.0, 4.0)}
    assert matching_names(fixes, names, path) == {"cam1/2.jpg": fixes["2"]}
