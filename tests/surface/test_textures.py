"""Textures of meshes: which photo a triangle shows, level seams, pages without overlaps."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edm_hloc.base.colmap import posed_images
from edm_hloc.surface import atlas
from edm_hloc.surface.atlas import Cut, TexturedMesh, textured
from edm_hloc.surface.ply import Mesh
from edm_hloc.surface.raster import draw_inverse_depths, draw_values
from edm_hloc.surface.seams import Patches, levelled
from edm_hloc.surface.simplify import simplified
from edm_hloc.surface.views import Candidates, best_photos, neighbours

WIDTH, HEIGHT = 471, 313


def _model(centres: list[list[float]]) -> pycolmap.Reconstruction:
    """Cameras that look along z."""
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera(
        camera_id=1, model="SIMPLE_PINHOLE", width=WIDTH, height=HEIGHT, params=[400, 235.5, 156.5]
    )
    model.add_camera_with_trivial_rig(camera)
    for number, centre in enumerate(centres, start=1):
        image = pycolmap.Image(name=f"{number}.png", camera_id=1, image_id=number)
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(), -np.array(centre))
        model.add_image_with_trivial_frame(image, pose)
    return model


def _sheet(depth: float, low: tuple[float, float], high: tuple[float, float], step: float) -> Mesh:
    """A sheet that faces the cameras, of two triangles a square."""
    x, y = (np.arange(a, b + step / 2, step) for a, b in zip(low, high, strict=True))
    columns, rows = len(x), len(y)
    vertices = np.stack(
        [*(g.ravel() for g in np.meshgrid(x, y)), np.full(columns * rows, depth)], 1
    )
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    triangles = np.concatenate(
        [
            np.stack([corner, corner + columns, corner + 1], axis=1),
            np.stack([corner + 1, corner + columns, corner + columns + 1], axis=1),
        ]
    )
    return Mesh(vertices, np.full(vertices.shape, 128, np.uint8), triangles.astype(np.int32))


def _joined(a: Mesh, b: Mesh) -> Mesh:
    triangles = np.concatenate([a.triangles, b.triangles + len(a.vertices)])
    vertices = np.concatenate([a.vertices, b.vertices])
    return Mesh(vertices, np.full(vertices.shape, 128, np.uint8), triangles.astype(np.int32))


def _pattern(points: np.ndarray) -> np.ndarray:
    """(N, 3) smooth colours of the world at x and y."""
    x, y = points[:, 0], points[:, 1]
    waves = [np.sin(3 * x + y), np.sin(2 * y - x), np.sin(x * 2 + 1)]
    return 128 + 80 * np.stack(waves, axis=1)


def _photograph(model: pycolmap.Reconstruction, depth: float, folder: Path, exposure: dict) -> None:
    """Photos of a sheet at a depth that has the pattern."""
    x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    for name, image in posed_images(model).items():
        rays = (np.stack([x.ravel(), y.ravel()], axis=1) + 0.5 - [235.5, 156.5]) / 400
        colours = _pattern(image.projection_center()[:2] + depth * rays) * exposure.get(name, 1.0)
        pixels = np.rint(colours.clip(0, 255)).astype(np.uint8).reshape(HEIGHT, WIDTH, 3)
        cv2.imwrite(str(folder / name), pixels[..., ::-1])


def _textured(mesh: Mesh, model: pycolmap.Reconstruction, folder: Path) -> TexturedMesh:
    images = {folder / name: image for name, image in posed_images(model).items()}
    return textured(mesh, model, images, WIDTH)


def _colours(found: TexturedMesh) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 3) in the triangles and their colours (N, 3) in the pages."""
    points, colours = [], []
    for triangles, page in zip(found.triangles, found.pages, strict=True):
        sheet = cv2.imdecode(np.frombuffer(page, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        for weights in ([1 / 3, 1 / 3, 1 / 3], [0.9, 0.05, 0.05], [0.05, 0.05, 0.9]):
            uv = np.einsum("k,tki->ti", weights, found.uv[triangles])
            x, y = (uv * [sheet.shape[1], sheet.shape[0]] - 0.5).T.astype(np.float32)
            colours.append(cv2.remap(sheet, x[None], y[None], cv2.INTER_LINEAR)[0])
            points.append(np.einsum("k,tki->ti", weights, found.vertices[triangles]))
    return np.concatenate(points), np.concatenate(colours)


def test_the_texture_is_what_the_photos_show(tmp_path: Path) -> None:
    model = _model([[-0.6, 0, 0], [0.6, 0, 0]])
    _photograph(model, 4.0, tmp_path, {})
    mesh = _sheet(4.0, (-2.6, -1.4), (2.6, 1.4), 0.1)
    found = _textured(mesh, model, tmp_path)
    assert len(found) == len(mesh)
    assert not len(found.rest)
    points, colours = _colours(found)
    assert points[:, 2] == pytest.approx(4)
    off = np.abs(colours - _pattern(points)).max(axis=1)
    assert np.percentile(off, 99) < 6  # JPEG
    assert len(found.pages) == 1


@pytest.mark.parametrize("side", [4096, 200])  # of a page: the photo whole, and reduced
def test_the_texture_is_in_its_place(
    side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atlas, "_SIDE", side)
    monkeypatch.setattr(atlas, "_MOST_PAGES", 1)
    noise = np.random.default_rng(2).normal(0, 1, (HEIGHT, WIDTH, 3))
    noise = cv2.GaussianBlur(noise, (0, 0), 8)
    photo = np.rint(128 + 45 * noise / noise.std()).clip(0, 255).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "1.png"), photo[..., ::-1])
    found = _textured(_sheet(4.0, (-2.2, -1.3), (2.2, 1.3), 0.1), _model([[0, 0, 0]]), tmp_path)
    points, colours = _colours(found)
    assert not len(found.rest)

    def off(shift: float) -> float:
        x, y = (points[:, k] / 4 * 400 + c - 0.5 + shift for k, c in ((0, 235.5), (1, 156.5)))
        there = cv2.remap(photo, *(v[None].astype(np.float32) for v in (x, y)), cv2.INTER_LINEAR)[0]
        return float(np.sqrt(np.mean((there - colours) ** 2)))

    assert min((-0.25, 0.0, 0.25), key=off) == 0
    assert off(0) < 5


def test_exposures_are_levelled(tmp_path: Path) -> None:
    model = _model([[-1, 0, 0], [1, 0, 0]])
    _photograph(model, 4.0, tmp_path, {"1.png": 1.15, "2.png": 0.9})
    found = _textured(_sheet(4.0, (-3.0, -1.0), (3.0, 1.0), 0.1), model, tmp_path)
    points, colours = _colours(found)
    near = np.abs(points[:, 0]) < 0.3  # both photos; without levelling the seam lies there
    ratio = colours[near] / _pattern(points[near])
    assert np.ptp(np.percentile(ratio, [10, 90])) < 0.12  # 0.25 between the photos


def test_a_photo_that_is_darker_than_the_others_gets_their_brightness(tmp_path: Path) -> None:
    model = _model([[0, 0, 0], *([0.3 * k, 0, -0.1 * abs(k)] for k in (-2, -1, 1, 2))])
    for number, image in enumerate(posed_images(model).values()):
        alone = _model([image.projection_center().tolist()])
        depth = 4.0 - image.projection_center()[2]
        _photograph(alone, depth, tmp_path, {"1.png": 0.7 if number == 0 else 1.0})
        (tmp_path / "1.png").rename(tmp_path / f"{number}.made")
    for number in range(5):
        (tmp_path / f"{number}.made").rename(tmp_path / f"{number + 1}.png")
    found = _textured(_sheet(4.0, (-1.5, -1.0), (1.5, 1.0), 0.1), model, tmp_path)
    points, colours = _colours(found)
    middle = np.abs(points[:, 0]) < 1.0  # the darker photo is the nearest one
    ratio = np.median(colours[middle] / _pattern(points[middle]))
    assert 0.9 < ratio < 1.02


def test_what_is_hidden_is_shown_by_the_photo_that_sees_it(tmp_path: Path) -> None:
    model = _model([[-1.0, 0, 0], [1.0, 0, 0]])
    wall, panel = (
        _sheet(4.0, (-1.0, -0.8), (1.0, 0.8), 0.1),
        _sheet(2.0, (-0.3, -0.7), (0.3, 0.7), 0.1),
    )
    mesh = _joined(wall, panel)
    _photograph(model, 4.0, tmp_path, {})
    images = {tmp_path / name: image for name, image in posed_images(model).items()}
    candidates = Candidates.of(mesh, model, images, WIDTH)
    photos = best_photos(candidates, neighbours(mesh))
    middles = mesh.vertices[mesh.triangles].mean(axis=1)
    on_wall = middles[:, 2] == 4
    # the panel hides x from 0.4 to 1.6 from the first photo, and the opposite from the second one
    assert (photos[on_wall & (middles[:, 0] > 0.5)] == 1).all()
    assert (photos[on_wall & (middles[:, 0] < -0.5)] == 0).all()
    assert (photos[~on_wall] >= 0).all()


def test_a_passer_by_in_one_photo_is_not_shown(tmp_path: Path) -> None:
    model = _model([[-0.4, 0, 0], [-0.1, 0, 0], [0.1, 0, 0], [0.4, 0, 0]])
    _photograph(model, 4.0, tmp_path, {})
    photo = cv2.imread(str(tmp_path / "2.png"))
    photo[100:220, 180:260] = (250, 0, 250)
    cv2.imwrite(str(tmp_path / "2.png"), photo)
    found = _textured(_sheet(4.0, (-1.5, -1.0), (1.5, 1.0), 0.1), model, tmp_path)
    points, colours = _colours(found)
    off = np.abs(colours - _pattern(points)).max(axis=1)
    assert np.mean(off > 20) < 0.01


def test_what_no_photo_sees_has_the_colour_beside_it(tmp_path: Path) -> None:
    model = _model([[0, 0, 0]])
    _photograph(model, 4.0, tmp_path, {"1.png": 0.0})
    found = _textured(_sheet(4.0, (-4.0, -1.0), (4.0, 1.0), 0.1), model, tmp_path)
    beyond = np.abs(found.rest.vertices[:, 0]) - 400 / 400 * 4 * 235.5 / 400
    assert (beyond > -0.2).all()
    assert (found.rest.colours[beyond < 0.5] < 10).all()
    assert (found.rest.colours[beyond > 1.5] == 128).all()


def test_an_unreadable_photo_is_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = _model([[0, 0, 0], [0.1, 0, 0]])
    _photograph(model, 4.0, tmp_path, {})
    (tmp_path / "2.png").write_bytes(b"no photo")
    found = _textured(_sheet(4.0, (-1.0, -1.0), (1.0, 1.0), 0.2), model, tmp_path)
    assert "2.png" in caplog.text
    assert len(found.pages) == 1
    assert not len(found.rest)
    (tmp_path / "1.png").unlink()
    found = _textured(_sheet(4.0, (-1.0, -1.0), (1.0, 1.0), 0.2), model, tmp_path)
    assert not found.pages
    assert len(found.rest) == 200


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 3000), st.floats(0, 3000)), min_size=1, max_size=60),
    st.integers(1, 1500),
)
def test_windows_do_not_overlap(corners: list[tuple[float, float]], side: int) -> None:
    """A patch of two nodes at each corner and `side` px farther, in photos of 4,600 px."""
    low = np.array(corners)
    points = np.stack([low, low + side], axis=1).reshape(-1, 2)
    number = len(low)
    patches = Patches(
        triangles=np.zeros((0, 3), int),
        rows=np.zeros(0, int),
        vertex=np.arange(2 * number),
        patch=np.repeat(np.arange(number), 2),
        photo=np.zeros(number, int),
    )
    cut = Cut.of(patches, points, np.full((number, 2), 4600))
    assert cut.scale > 0.1
    assert len(cut.sizes) <= 4
    taken = [np.zeros((height, width), np.uint8) for width, height in cut.sizes]
    for patch in range(number):
        window = cut.window(taken, patch)
        assert window.shape == tuple(cut.size[patch, ::-1])
        window += 1
    assert max(sheet.max() for sheet in taken) == 1
    uv = cut.uv(patches)
    assert ((uv > 0) & (uv < 1)).all()
    inner = cut.in_windows(patches)
    assert (inner >= 2).all()  # room for what viewers interpolate
    assert (inner <= cut.size[patches.patch] - 3).all()


def test_changes_level_two_patches() -> None:
    mesh = _sheet(1.0, (0.0, 0.0), (1.0, 1.0), 0.1)
    left = mesh.vertices[mesh.triangles].mean(axis=1)[:, 0] < 0.5
    patches = Patches.of(mesh.triangles, np.where(left, 0, 1), neighbours(mesh))
    assert patches.photo.tolist() == [0, 1]
    colours = np.where(patches.photo[patches.patch] == 0, 100.0, 120.0)[:, None] * np.ones(3)
    for usual in (0.0, 15.0):  # by which most photos are brighter than these two
        changes = levelled(patches, colours, np.full((len(mesh), 3), usual))
        both = colours + changes
        assert np.ptp(both) < 4
        assert both.mean() == pytest.approx(110 + usual, abs=1)


def test_patches_have_their_own_corners() -> None:
    mesh = _sheet(1.0, (0.0, 0.0), (0.3, 0.3), 0.1)
    photos = np.where(mesh.vertices[mesh.triangles].mean(axis=1)[:, 0] < 0.1, 3, -1)
    patches = Patches.of(mesh.triangles, photos, neighbours(mesh))
    assert patches.photo.tolist() == [3]
    assert (photos[patches.rows] == 3).all()
    assert (patches.vertex[patches.triangles] == mesh.triangles[patches.rows]).all()


def test_inverse_depths_are_those_of_the_nearest_triangle() -> None:
    corners = np.array([[[0, 0], [20, 0], [0, 20]], [[0, 0], [20, 0], [0, 20]]], np.float32)
    inverse = np.array([[0.1, 0.3, 0.2], [0.2, 0.2, 0.2]], np.float32)
    nearest = np.zeros((16, 24), np.float32)
    draw_inverse_depths(corners, inverse, nearest)
    y, x = np.mgrid[:16, :24]
    expected = np.where(x + y <= 20, np.maximum(0.1 + 0.01 * x + 0.005 * y, 0.2), 0)
    assert nearest == pytest.approx(expected, abs=1e-5)


def test_values_are_linear_and_reach_to_the_pixels_beside() -> None:
    corners = np.array([[[1.5, 1.5], [9.5, 2.5], [2.5, 8.5]]], np.float32)
    values = np.concatenate([corners, np.ones((1, 3, 1), np.float32)], axis=2)
    drawn, covered = np.zeros((12, 12, 3), np.float32), np.zeros((12, 12), np.float32)
    draw_values(corners, values, drawn, covered)
    inside = cv2.fillConvexPoly(np.zeros((12, 12)), np.rint(corners[0]).astype(int), 1) > 0
    y, x = np.nonzero(cv2.erode(inside.astype(np.uint8), np.ones((3, 3))))
    assert len(y) > 10
    assert drawn[y, x] == pytest.approx(np.stack([x, y, np.ones(len(x))], axis=1), abs=1e-4)
    assert drawn[covered > 0, 2] == pytest.approx(1, abs=1e-5)
    assert covered.sum() > inside.sum()
    assert (drawn[covered == 0] == 0).all()


def test_fewer_triangles_keep_a_plane() -> None:
    mesh = _sheet(5.0, (1e6, 0.0), (1e6 + 1, 1.0), 0.02)
    fewer = simplified(mesh, 500)
    assert 100 < len(fewer) <= 550
    assert fewer.vertices[:, 2] == pytest.approx(5, abs=1e-4)
    assert np.ptp(fewer.vertices[:, 0]) == pytest.approx(1, abs=0.02)
    assert fewer.vertices[:, 0].min() == pytest.approx(1e6, abs=0.01)
    assert simplified(mesh, 10**6) is mesh
