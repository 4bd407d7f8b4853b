"""Masks are found by the names of their photos, and bad ones are refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.images.masks import find_masks

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
