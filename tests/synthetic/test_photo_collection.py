"""Collections of photos agree with their true cameras and are reproducible."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.synthetic import aachen_miniature
from edm_hloc.synthetic.aachen_miniature import make_aachen
from edm_hloc.synthetic.inloc_miniature import make_inloc
from edm_hloc.synthetic.photo_collection import make_photo_collection
from edm_hloc.synthetic.photo_truth import MARKER, claim_miniature, note_rendered
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
    (tmp_path / "truth" / "queries").mkdir(parents=True)  # as somebody may keep true poses
    for own in ("", "some notes\n"):
        if own:
            (tmp_path / MARKER).write_text(own)
        with pytest.raises(EdmHlocError, match="was not rendered by edm-hloc"):
            make(tmp_path)
    (tmp_path / MARKER).write_text("Rendered by edm-hloc, which may write over all that is here.\n")
    with pytest.raises(EdmHlocError, match=r"miniature\.txt lists no files"):
        make(tmp_path)
    assert photo.read_bytes() == b"a real photo"


def _content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.slow
def test_a_miniature_takes_the_place_of_an_earlier_one_and_leaves_what_is_not_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, small = tmp_path / "miniature", (64, 64)
    own = "images_upright/query/day/nexus4/own.jpg"
    with monkeypatch.context() as patched:
        patched.setattr(aachen_miniature, "write_true_model", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_aachen(folder, 5, (2, 2), small, depth_maps=True)
    (folder / own).write_bytes(b"a real photo")
    make_aachen(folder, 4, (1, 1), small, 2)
    content = _content(folder)
    assert content.pop(own) == b"a real photo"
    assert content == _content(make_aachen(tmp_path / "fresh", 4, (1, 1), small, 2))
    make_inloc(folder, 4, 2, small)
    assert sorted(path.name for path in folder.iterdir()) == [
        *("database", "images_upright", MARKER, "query", "truth")
    ]
    assert [path for path in folder.rglob("*.jpg") if "cutout" not in path.name] == [folder / own]
    assert sorted(path.name for path in (folder / "truth/queries").iterdir()) == [
        *("DUC1.txt", "DUC2.txt")
    ]


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["../own.jpg", "linked/own.jpg", "{folder}/own.jpg"])
def test_nothing_outside_of_a_miniature_is_removed(name: str, tmp_path: Path) -> None:
    folder, own = tmp_path / "miniature", tmp_path / "own.jpg"
    own.write_bytes(b"a real photo")
    name = name.format(folder=tmp_path)
    claim_miniature(folder)
    (folder / "linked").symlink_to(tmp_path)
    note_rendered(folder, "1.jpg", name)
    (folder / "1.jpg").touch()
    with pytest.raises(EdmHlocError, match=f"lists {name}, which is not in"):
        claim_miniature(folder)
    assert own.exists()
    assert (folder / "1.jpg").exists()
