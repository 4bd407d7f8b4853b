"""Readers of real training data, and batches of it."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import cv2
import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.frames import Origin, origin_shift
from edm_hloc.synthetic.pairs import RenderedPairs
from edm_hloc.training.config import RealData
from edm_hloc.training.real_pairs import RealSource, covisible_centres, crop_to_size, ground_truth
from edm_hloc.training.scene_types import SupervisedImage
from edm_hloc.training.scenes import colmap_scenes, megadepth_scenes
from edm_hloc.training.supervision import (
    DepthMap,
    grid_points,
    supervise,
    warp_points,
)
from tests.planar import COLMAP_OFFSET, PlanarPair
from tests.training.tools import (
    pinhole,
    plane_depth,
    rendered_pair,
    rotation,
    write_jpeg,
)


def make_megadepth(root: Path, pair: RenderedPairs) -> RealData:
    images, depths = (pair.image0, pair.image1), (pair.depth0, pair.depth1)
    for i in range(2):
        write_jpeg(root / f"imgs/{i}.jpg", (images[i][0, 0].numpy() * 255).round().astype(np.uint8))
        (root / "depths").mkdir(exist_ok=True)
        with h5py.File(root / f"depths/{i}.h5", "w") as file:
            file["depth"] = depths[i][0].numpy()
    rng = np.random.default_rng(0)
    pose0 = np.eye(4)
    pose0[:3, :3] = rotation(0, 20.0).numpy()
    pose0[:3, 3] = rng.normal(size=3)
    K0, K1 = (K[0].numpy() + COLMAP_OFFSET for K in (pair.K0, pair.K1))
    content = {
        "image_paths": np.array(["imgs/0.jpg", "imgs/1.jpg", "imgs/missing.jpg"], dtype=object),
        "depth_paths": np.array(["depths/0.h5", "depths/1.h5", "x.h5"], dtype=object),
        "intrinsics": np.array([K0, K1, np.eye(3)]),
        "poses": np.array([pose0, pair.T_0to1[0].numpy() @ pose0, np.eye(4)]),
    }
    infos = np.empty(3, dtype=object)
    infos[0] = ((0, 1), 0.6, np.zeros((1, 4)))
    infos[1] = ((1, 2), 0.5, np.zeros((1, 4)))  # unreadable
    infos[2] = ((0, 0), 0.1, np.zeros((1, 4)))  # hardly overlaps
    (root / "index").mkdir()
    np.savez(root / "index" / "0001.npz", **content, pair_infos=infos)
    (root / "index" / "._0001.npz").write_bytes(b"\0\5\26\7Mac OS X")
    return RealData("megadepth", str(root), str(root / "index"))


def truth_in_either_order(pair: RenderedPairs) -> list[Tensor]:
    direct = supervise(DepthMap(pair.depth0, pair.K0), DepthMap(pair.depth1, pair.K1), pair.T_0to1)
    T = torch.linalg.inv(pair.T_0to1)
    swapped = supervise(DepthMap(pair.depth1, pair.K1), DepthMap(pair.depth0, pair.K0), T)
    return [direct.partner[0], swapped.partner[0]]


def agreement(found: Tensor, expected: list[Tensor]) -> float:
    """Share of equal partners (rounding differs between the ways of writing a pose)."""
    return max(float((found == e).float().mean()) for e in expected)


def test_megadepth_pairs_have_the_truth_of_their_scene(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pair = rendered_pair()
    source = RealSource(make_megadepth(tmp_path, pair), 0.05)
    expected = truth_in_either_order(pair)
    batch = source.batch(6, 96, 128, 0)
    assert batch.image0.shape == (6, 1, 96, 128)
    assert float((expected[0] >= 0).float().mean()) > 0.2
    assert all(agreement(p, expected) > 0.97 for p in batch.truth.partner)
    assert "missing.jpg" in caplog.text
    assert torch.equal(source.batch(6, 96, 128, 0).truth.partner, batch.truth.partner)
    # There is ground truth at another size and aspect ratio as well.
    other = source.batch(2, 64, 64, 1)
    assert other.image1.shape == (2, 1, 64, 64)
    assert float((other.truth.partner >= 0).float().mean()) > 0.2


def remaining_shift(image0: SupervisedImage, image1: SupervisedImage, T: np.ndarray) -> np.ndarray:
    """Shift (x, y) of image 1, in pixels, that would make it agree best with image 0 as warped.

    One step of Lucas–Kanade alignment over random pixels, with gain and offset.
    """
    height, width = image0.image.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(height * width, generator=generator)[:20000]
    points0 = torch.stack([x, y], dim=-1).reshape(1, -1, 2)[:, chosen].float()
    map0, map1 = (
        DepthMap(torch.from_numpy(i.depth)[None], torch.from_numpy(i.K).float()[None])
        for i in (image0, image1)
    )
    warped, visible = warp_points(points0, map0, map1, torch.from_numpy(T).float()[None], 0.05)
    points1 = warped[visible].numpy()

    def sample(dx: float, dy: float) -> np.ndarray:
        px, py = (points1 + np.float32([dx, dy])).T
        pixels = image1.image.astype(np.float32)
        return cv2.remap(pixels, px, py, cv2.INTER_CUBIC, None, cv2.BORDER_REFLECT).reshape(-1)

    gradient_x = sample(0.5, 0.0) - sample(-0.5, 0.0)
    gradient_y = sample(0.0, 0.5) - sample(0.0, -0.5)
    seen0, seen1 = image0.image.reshape(-1)[chosen[visible[0]]].astype(np.float32), sample(0.0, 0.0)
    design = np.column_stack([gradient_x, gradient_y, seen0, np.ones_like(seen0)])
    solution: np.ndarray = np.linalg.lstsq(design, seen0 - seen1, rcond=None)[0]
    return solution[:2]


def geometric_errors(
    planar: PlanarPair, images: list[SupervisedImage], T: np.ndarray, origin: Origin
) -> np.ndarray:
    """(N,) errors in px of the ground truth of scaled and cropped images of a plane."""
    truth = ground_truth(*images, T, origin=origin)
    shift = origin_shift(origin)
    errors = []
    for i, (warped, visible, grid) in enumerate(
        [(truth.warped0, truth.visible0, truth.grid0), (truth.warped1, truth.visible1, truth.grid1)]
    ):
        points = grid_points(grid)[visible[0]].numpy().astype(float) - shift
        to_full, to_other = (
            planar.K[i] @ np.linalg.inv(images[i].K),
            images[1 - i].K @ np.linalg.inv(planar.K[1 - i]),
        )
        full = points @ to_full[:2, :2].T + to_full[:2, 2]
        expected = planar.warp(i, full) @ to_other[:2, :2].T + to_other[:2, 2]
        errors.append(np.abs(warped[0][visible[0]].numpy() - shift - expected).max(axis=1))
    return np.concatenate(errors)


SIZES = [((471, 313), (471, 313)), ((320, 240), (471, 313)), ((1014, 599), (313, 471))]


@pytest.mark.parametrize(("size0", "size1"), SIZES)
def test_truth_of_megadepth_is_exact(
    tmp_path: Path, size0: tuple[int, int], size1: tuple[int, int]
) -> None:
    """Against the images and the homography, at full size, and scaled and cropped."""
    planar = PlanarPair(size0, size1)
    (scene,) = megadepth_scenes(tmp_path, planar.write_as_megadepth(tmp_path), 0.4)
    *full, T = scene.read(0)
    centres = covisible_centres(*full, T)
    for size in (None, (192, 256), (256, 192), (160, 160)):
        images = full
        if size is not None:
            images = [crop_to_size(i, *size, c) for i, c in zip(full, centres, strict=True)]
        assert np.abs(remaining_shift(*images, T)).max() < 0.05
        for origin in get_args(Origin):
            errors = geometric_errors(planar, images, T, origin)
            assert len(errors) > 200
            assert errors.max() < 0.05
        # Half a pixel would be noticed.
        wrong = [image._replace(K=image.K + COLMAP_OFFSET) for image in images]
        assert np.abs(remaining_shift(*wrong, T)).max() > 0.15


def test_scannet_pairs_have_the_truth_of_their_scene(tmp_path: Path) -> None:
    pair = rendered_pair()
    folder = tmp_path / "scene0007_01"
    images, depths = (pair.image0, pair.image1), (pair.depth0, pair.depth1)
    poses = (np.eye(4), np.linalg.inv(pair.T_0to1[0].numpy()))  # world_from_cam
    for i, frame in enumerate((40, 85)):
        large = cv2.resize(images[i][0, 0].numpy(), (256, 192))
        write_jpeg(folder / f"color/{frame}.jpg", (large * 255).astype(np.uint8))
        for name in ("depth", "pose"):
            (folder / name).mkdir(exist_ok=True)
        millimetres = (depths[i][0].numpy() * 1000).round().astype(np.uint16)
        assert cv2.imwrite(str(folder / f"depth/{frame}.png"), millimetres)
        np.savetxt(folder / f"pose/{frame}.txt", poses[i])
    index = tmp_path / "index"
    index.mkdir()
    names = np.array([[7, 1, 40, 85], [7, 1, 40, 999]])
    np.savez(index / "scene0007_01.npz", name=names, score=np.array([0.7, 0.1]))
    np.savez(index / "intrinsics.npz", scene0007_01=pair.K0[0].numpy())
    (index / "._scene0007_01.npz").write_bytes(b"\0\5\26\7Mac OS X")
    source = RealSource(RealData("scannet", str(tmp_path), str(index)), 0.05)
    assert source.scenes[0].length == 1  # the other one hardly overlaps
    view0, view1, T = source.scenes[0].read(0)
    np.testing.assert_allclose(T, pair.T_0to1[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(view0.depth, depths[0][0].numpy(), atol=6e-4)
    assert view1.image.shape == (96, 128)
    np.testing.assert_allclose(view0.K, pair.K0[0].numpy(), atol=1e-5)
    assert source.batch(2, 96, 128, 0).image0.shape == (2, 1, 96, 128)


def test_fit_keeps_the_projection() -> None:
    """After scaling and cropping, a point is found where the new K projects it."""
    height, width = 313, 471
    y, x = np.mgrid[:height, :width]
    image = (255 * np.exp(-((x - 300.0) ** 2 + (y - 200.0) ** 2) / 600)).astype(np.uint8)
    K = np.array([[400.0, 0, 235], [0, 400, 156], [0, 0, 1]])
    ray = np.linalg.inv(K) @ [300, 200, 1]
    view = SupervisedImage(image, None, K, np.array([[300.0, 200.0]]))
    out = crop_to_size(view, 96, 64, np.array([290.0, 190.0]))
    assert out.image.shape == (96, 64)
    expected = out.K @ ray
    assert out.points is not None
    np.testing.assert_allclose(out.points[0], expected[:2], atol=1e-9)
    weights = out.image.astype(float)
    centre = (weights * np.mgrid[:96, :64][::-1]).sum((1, 2)) / weights.sum()
    np.testing.assert_allclose(centre, out.points[0], atol=0.3)


def test_colmap_model_gives_pairs(tmp_path: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig = 1, 1, 4
    options.num_points3D = 300
    options.camera_width, options.camera_height = 400, 300
    options.camera_model_id = pycolmap.CameraModelId.SIMPLE_PINHOLE
    options.camera_params = [360.0, 200.0, 150.0]
    model = pycolmap.synthesize_dataset(options)
    (tmp_path / "model").mkdir()
    model.write(tmp_path / "model")
    rng = np.random.default_rng(0)
    for image in model.images.values():
        write_jpeg(tmp_path / "images" / image.name, rng.integers(0, 255, (300, 400), np.uint8))
    data = RealData("colmap", str(tmp_path / "images"), str(tmp_path / "model"))
    source = RealSource(data, 0.05)
    assert source.scenes[0].length == 6
    view0, view1, T = source.scenes[0].read(0)
    assert view0.points is not None
    assert view1.points is not None
    assert len(view0.points) == len(view1.points) >= 40
    E = np.cross(T[:3, 3], T[:3, :3], axisb=0, axisc=0)
    rays = [
        np.column_stack([v.points, np.ones(len(v.points))]) @ np.linalg.inv(v.K).T
        for v in (view0, view1)
    ]
    residual = np.einsum("ni,ij,nj->n", rays[1], E, rays[0])
    assert np.abs(residual).max() < 1e-6 * np.abs(T[:3, 3]).max()
    batch = source.batch(2, 128, 160, 0)
    assert batch.image0.shape == (2, 1, 128, 160)
    with pytest.raises(EdmHlocError, match="no folder"):
        RealSource(RealData("colmap", str(tmp_path / "none"), str(tmp_path / "model")), 0.05)


def test_colmap_pairs_equal_plain_counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig = 1, 1, 9
    options.num_points3D, options.track_length = 400, 3
    model = pycolmap.synthesize_dataset(options)
    names = sorted(image.name for image in model.images.values())
    sees: dict[str, set[int]] = {name: set() for name in names}
    for number, point in model.points3D.items():
        for element in point.track.elements:
            sees[model.images[element.image_id].name].add(number)
    # A point behind some of the cameras that observe it, which thus have no pixel for it.
    moved = min(sees[names[0]])
    model.points3D[moved].xyz = 3 * model.find_image_with_name(names[0]).projection_center()
    for image in model.images.values():
        if (image.cam_from_world() * model.points3D[moved].xyz)[2] <= 0:
            sees[image.name].discard(moved)
    model.write(tmp_path)
    counts = [(a, b, len(sees[a] & sees[b])) for i, a in enumerate(names) for b in names[i + 1 :]]
    least = int(np.median([count for _, _, count in counts]))
    monkeypatch.setattr("edm_hloc.training.scenes.MIN_SHARED_POINTS", least)
    read: list[str] = []
    monkeypatch.setattr(
        "edm_hloc.training.scene_types.read_grey",
        lambda path: read.append(path.name) or np.zeros((768, 1024), np.uint8),
    )
    with monkeypatch.context() as patch:
        patch.delattr(np, "intersect1d")  # not for each image with each
        (scene,) = colmap_scenes(tmp_path, tmp_path)
    found = []
    for number in range(scene.length):
        view0, _, _ = scene.read(number)
        found.append((read[-2], read[-1], len(view0.points)))
    assert found == [c for c in counts if c[2] >= least]
    assert 0 < scene.length < len(counts)


@pytest.mark.parametrize("orientation", [3, 6])
def test_photos_are_read_as_they_are_stored(tmp_path: Path, orientation: int) -> None:
    """EXIF orientations are ignored, since models and depth maps are in the pixels of the file."""
    data = make_megadepth(tmp_path, rendered_pair())
    (scene,) = RealSource(data, 0.05).scenes
    expected = scene.read(0)[0].image
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(expected).save(tmp_path / "imgs/0.jpg", quality=100, exif=exif)
    found = scene.read(0)[0].image
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() < 8


def test_missing_depth_maps_are_said_before_the_training(tmp_path: Path) -> None:
    data = make_megadepth(tmp_path, rendered_pair())
    depth = next(path for path in tmp_path.rglob("*.h5"))
    depth.unlink()
    with pytest.raises(EdmHlocError, match=rf"names .*{depth.name}, which is not in .*depth maps"):
        RealSource(data, 0.05)


def test_index_errors_name_the_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "scene.npz", image_paths=np.zeros(1))
    with pytest.raises(EdmHlocError, match=r"scene\.npz lacks depth_paths"):
        RealSource(RealData("megadepth", str(tmp_path), str(tmp_path)), 0.05)
    (tmp_path / "scene.npz").write_bytes(b"no")
    with pytest.raises(EdmHlocError, match=r"scene\.npz is not an index"):
        RealSource(RealData("megadepth", str(tmp_path), str(tmp_path)), 0.05)
    (tmp_path / "scene.npz").unlink()
    with pytest.raises(EdmHlocError, match="no training pairs"):
        RealSource(RealData("megadepth", str(tmp_path), str(tmp_path)), 0.05)


@pytest.mark.parametrize("size", [(96, 128), (64, 96), (200, 300)])
def test_depth_of_a_scaled_plane_is_that_of_its_pixels(size: tuple[int, int]) -> None:
    height, width = 150, 233
    K = pinhole(200.0, height, width)
    normal = torch.tensor([0.5, 0.0, 0.866])
    depth = plane_depth(normal, 5.0, K, height, width).numpy()
    view = SupervisedImage(np.zeros((height, width), np.uint8), depth, K.double().numpy(), None)
    out = crop_to_size(view, *size, np.array([116.0, 75.0]))
    assert out.depth is not None
    expected = plane_depth(normal, 5.0, torch.from_numpy(out.K).float(), *size).numpy()
    np.testing.assert_allclose(out.depth, expected, rtol=2e-4)
