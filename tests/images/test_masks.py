"""Masks are found by the names of their photos, and bad ones are refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.images.decode import photo_size
from edm_hloc.images.masks import find_masks, read_mask

NAMES = ["a.jpg", "sub/b.jpg", "c.png"]


def test_bad_masks_are_named(tmp_path: Path) -> None:
    folder, images = tmp_path / "masks", tmp_path / "images"
    images.mkdir()
    Image.new("L", (313, 471)).save(images / "a.jpg")
    with pytest.raises(EdmHlocError, match="No such folder of masks"):
        find_masks(folder, NAMES, images)
    folder.mkdir()
    with pytest.raises(EdmHlocError, match=r"masks for none of the 3 photos.*a\.jpg\.png"):
        find_masks(folder, NAMES, images)
    mask = folder / "a.jpg.png"
    Image.fromarray(np.full((313, 471), 255, np.uint8)).save(mask)
    with pytest.raises(EdmHlocError, match=r"a\.jpg\.png has 471 × 313 pixels.*313 × 471"):
        find_masks(folder, NAMES, images)
    mask.write_bytes(mask.read_bytes()[:60])  # a whole header
    with pytest.raises(EdmHlocError, match=r"has 471 × 313 pixels"):
        find_masks(folder, NAMES, images)
    (images / "a.jpg").write_bytes(b"")  # a run goes on without it
    assert find_masks(folder, NAMES, images) == {"a.jpg": mask}
    mask.write_bytes(mask.read_bytes()[:6])
    with pytest.raises(EdmHlocError, match=r"Cannot read image .*a\.jpg\.png.*this mask again"):
        find_masks(folder, NAMES, images)


LEFT = np.zeros((40, 60), np.uint8)  # black on the left
LEFT[:, 30:] = 255


def left_is_masked(mask: Path, photo: Path) -> bool:
    visible = read_mask(mask, photo).visible(np.array([[10.0, 20.0], [50.0, 20.0]]))
    return list(visible) == [False, True]


@pytest.mark.parametrize(
    "name",
    [
        *("a.jpg.png", "a.png", "a.PNG", "A.JPG.PNG", "a_mask.png", "a.jpg_mask.png", "a.mask.png"),
        *("a.jpg", "a_mask.JPG", "a.jpg.jpg", "a.tif", "a.bmp", "a.webp"),
    ],
)
def test_masks_by_every_name_people_give_them(tmp_path: Path, name: str) -> None:
    images, folder = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    folder.mkdir()
    Image.new("L", (60, 40), 9).save(images / "a.jpg")
    Image.fromarray(LEFT).save(folder / name)
    assert find_masks(folder, ["a.jpg"], images) == {"a.jpg": folder / name}
    assert left_is_masked(folder / name, images / "a.jpg")


@pytest.mark.parametrize("suffix", ["tif", "png"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_masks_hold_as_they_are_stored(tmp_path: Path, suffix: str, orientation: int) -> None:
    photo, folder = tmp_path / "a.jpg", tmp_path / "masks"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("L", (60, 40), 9).save(photo)
    mask = folder / f"a.{suffix}"
    Image.fromarray(LEFT).save(mask, exif=exif.tobytes())
    assert find_masks(folder, ["a.jpg"], tmp_path) == {"a.jpg": mask}
    assert left_is_masked(mask, photo)


def test_a_mask_in_the_alpha_channel(tmp_path: Path) -> None:
    photo, mask = tmp_path / "a.png", tmp_path / "masks" / "a.png"
    mask.parent.mkdir()
    cut_out = Image.new("RGB", (60, 40), (0, 90, 0))
    cut_out.putalpha(Image.fromarray(LEFT))
    cut_out.save(mask)
    cut_out.save(photo)
    assert left_is_masked(mask, photo)
    # the photos' own, where the photos are given as masks; those without one are no masks
    Image.new("RGB", (60, 40)).save(tmp_path / "b.png")
    assert find_masks(tmp_path, ["a.png", "b.png"], tmp_path) == {"a.png": photo}
    # an alpha channel that says nothing leaves the colours to say it
    opaque = Image.merge("LA", [Image.fromarray(LEFT), Image.new("L", (60, 40), 255)])
    opaque.save(mask)
    assert left_is_masked(mask, photo)


def test_one_mask_for_all_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr(
        "edm_hloc.images.masks.photo_size", lambda path: opened.append(path) or photo_size(path)
    )
    images, mask = tmp_path / "images", tmp_path / "masks" / "rig.png"
    images.mkdir()
    mask.parent.mkdir()
    names = ["a.jpg", "b.jpg"]
    for name in names:
        Image.new("L", (120, 80)).save(images / name)
    Image.fromarray(LEFT).save(mask)
    assert find_masks(mask, names, images) == dict.fromkeys(names, mask)
    assert opened == [mask, images / "a.jpg", images / "b.jpg"]
    with pytest.raises(EdmHlocError, match=r"none of the 2 photos.*given as a file"):
        find_masks(mask.parent, names, images)
    Image.new("L", (80, 120)).save(images / "b.jpg")
    with pytest.raises(EdmHlocError, match=r"rig\.png has 60 × 40 pixels, the photo .*b\.jpg"):
        find_masks(mask, names, images)


def test_masks_beyond_measure_are_refused_by_their_header(tmp_path: Path) -> None:
    mask = tmp_path / "a.pgm"
    mask.write_bytes(b"P5 22000 22000 255\n")
    with pytest.raises(EdmHlocError, match=r"a\.pgm has 22000 × 22000 pixels: shrink it"):
        find_masks(mask, ["a.jpg"], tmp_path)
