"""Collections of photos agree with their true cameras and are reproducible."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.synthetic.aachen_miniature import make_aachen
from edm_hloc.synthetic.inloc_miniature import make_inloc
from edm_hloc.synthetic.photo_collection import make_photo_collection
from edm_hloc.synthetic.photo_truth import claim_miniature
from edm_hloc.synthetic.textures import TextureBank
from tests.synthetic.simple_scenes import smooth_bank


def test_photo_collection(tmp_path: Path) -> None:
    bank = TextureBank.procedural(8, 64)
    images = make_photo_collection(
        tmp_path, views=5, size=(161, 121), textures=bank, depth_maps=True
    )
    truth = pycolmap.Reconstruction(tmp_path / "truth")
    assert truth.num_reg_images() == 5
    assert sorted(i.name for i in truth.images.values()) == sorted(p.name for p in images.iterdir())
    photos, depths, posed = [], [], []
    for image in sorted(truth.images.values(), key=lambda i: i.name):
        photos.append(cv2.imread(str(images / image.name)))
        depths.append(np.load(tmp_path / "depth" / image.name.replace(".jpg", ".npy")))
        posed.append(image)
        assert photos[-1].shape == (121, 161, 3)
        assert photos[-1].std() > 15
        assert (depths[-1] > 0).mean() > 0.5
    # Project pixels with COLMAP's own cameras from one view into the next; the depth agrees there.
    camera = truth.camera(1)
    y, x = np.mgrid[5:116:4, 5:156:4]
    z = depths[1][y, x]
    keep = z > 0
    pixels = np.stack([x[keep], y[keep]], 1) + 0.5
    rays_ = np.concatenate([camera.cam_from_img(pixels), np.ones((len(pixels), 1))], 1)
    world = (posed[1].cam_from_world().inverse().matrix() @ _homogeneous(rays_ * z[keep, None])).T
    local = (posed[2].cam_from_world().matrix() @ _homogeneous(world)).T
    there = camera.img_from_cam(local) - 0.5
    inside = (there > 2).all(1) & (there < np.array([158, 118])).all(1)
    found = cv2.remap(
        1 / np.maximum(depths[2], 1e-3), np.float32(there[inside]), None, cv2.INTER_LINEAR
    )[:, 0]
    ratio = found * local[inside, 2]
    assert inside.mean() > 0.6
    assert np.mean(np.abs(ratio - 1) < 1e-3) > 0.6
    grey = [cv2.cvtColor(p, cv2.COLOR_BGR2GRAY).astype(np.float32) for p in photos]
    same = np.abs(ratio - 1) < 1e-3
    values = cv2.remap(grey[2], np.float32(there[inside][same]), None, cv2.INTER_LINEAR)[:, 0]
    before = grey[1][y, x][keep][inside][same]
    assert np.corrcoef(values, before)[0, 1] > 0.8


def test_collections_are_reproducible(tmp_path: Path) -> None:
    bank = smooth_bank(8)
    folders = [
        make_photo_collection(tmp_path / name, views=2, size=(64, 48), seed=seed, textures=bank)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    first, again, other = ((f / "view_00.jpg").read_bytes() for f in folders)
    assert first == again
    assert first != other


def _homogeneous(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points, np.ones((len(points), 1))], 1).T


@pytest.mark.parametrize("make", [make_aachen, make_inloc])
def test_miniatures_write_over_nothing_but_miniatures(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    photo = tmp_path / "images_upright" / "db" / "1.jpg"
    photo.parent.mkdir(parents=True)
    photo.write_bytes(b"a real photo")
    with pytest.raises(EdmHlocError, match="was not rendered by edm-hloc"):
        make(tmp_path)
    assert photo.read_bytes() == b"a real photo"
    claim_miniature(tmp_path / "new")
    (tmp_path / "new" / "images_upright").mkdir()
    claim_miniature(tmp_path / "new")  # one that was interrupted begins again
