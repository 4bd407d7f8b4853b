"""Readers of real training scenes: MegaDepth and ScanNet by LoFTR's index files, COLMAP models.

Formats (poses are cam_from_world unless said otherwise):

MegaDepth: the index is a folder of `*.npz` files, one a scene, with `image_paths` and
    `depth_paths` (relative to the root), `intrinsics` (N, 3, 3), `poses` (N, 4, 4) and
    `pair_infos`, a list of ((i, j), overlap, …). Depth maps are H5 files with the entry `depth`.
ScanNet: the index is a folder of `*.npz` files with `name` (P, 4), rows of scene, scan, frame and
    frame, and `score` (P,), the overlap; beside them `intrinsics.npz` with one 3×3 array a scan.
    The root has `sceneSSSS_NN/{color/F.jpg, depth/F.png, pose/F.txt}`; depth in millimetres,
    poses are world_from_cam.
COLMAP: the index is a model, the root its folder of photos. The ground truth is sparse: the
    points that two images observe.
Reconstruction: the index is what `edm-hloc reconstruct` has written, the root its folder of photos;
    see `refined_matches`.

In which pixel frame each of them has its intrinsics is said in `pairs.index_files`; all that is
read here is in hloc's frame.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np

from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.base.frames import from_colmap
from edm_hloc.pairs.index_files import (
    ScanNetIntrinsics,
    read_megadepth_index,
    read_scannet_index,
    read_scannet_pose,
)
from edm_hloc.synthetic.textures import read_grey
from edm_hloc.training.config import RealData
from edm_hloc.training.refined_matches import reconstruction_scenes
from edm_hloc.training.scene_types import SupervisedImage, TrainingScene, photo_of_model

Array = np.ndarray
MIN_SHARED_POINTS = 40  # of a COLMAP model, for two images to be a training pair


def read_scenes(data: RealData) -> list[TrainingScene]:
    """The scenes of a data set that have training pairs.

    Raises:
        EdmHlocError: the data is missing or malformed, or has no pair.
    """
    root, index = Path(data.root), Path(data.index)
    for path in (root, index):
        if not path.is_dir():
            raise EdmHlocError(f"training data: there is no folder {path}")
    if data.format == "megadepth":
        scenes = megadepth_scenes(root, index, data.min_overlap)
    elif data.format == "scannet":
        scenes = scannet_scenes(root, index, data.min_overlap)
    elif data.format == "colmap":
        scenes = colmap_scenes(index, root)
    elif data.format == "reconstruction":
        scenes = reconstruction_scenes(index, root)
    else:
        raise EdmHlocError(f"unknown format of training data: {data.format!r}")
    scenes = [s for s in scenes if s.length]
    if not scenes:
        raise EdmHlocError(f"no training pairs with enough overlap in {index}")
    return scenes


def megadepth_scenes(root: Path, index: Path, min_overlap: float) -> list[TrainingScene]:
    """One scene for each index file of MegaDepth.

    Args:
        root: folder of the images and depth maps.
        index: folder of the index files.
        min_overlap: smallest overlap score of a pair.
    """

    def scene(path: Path) -> TrainingScene:
        content = read_megadepth_index(path, with_depth=True)
        pairs = [content.pairs[i] for i in np.flatnonzero(content.overlaps >= min_overlap)]
        for i in pairs[0] if pairs else ():
            _check_files(path, root, (content.image_path(i), content.depth_path(i)))

        def supervised_image(i: int) -> SupervisedImage:
            image = read_grey(root / content.image_path(i))
            depth_path = root / content.depth_path(i)
            try:
                with h5py.File(depth_path) as file:
                    depth = np.asarray(file["depth"], dtype=np.float32)
            except (OSError, KeyError) as error:
                raise ImageError(f"cannot read the depth map {depth_path}: {error}") from error
            if depth.shape != image.shape:
                raise ImageError(f"{depth_path} is {depth.shape}, its image {image.shape}")
            return SupervisedImage(image, depth, content.K(i), None)

        def read(number: int) -> tuple[SupervisedImage, SupervisedImage, Array]:
            i, j = pairs[number]
            return supervised_image(i), supervised_image(j), content.T_0to1(i, j)

        return TrainingScene(len(pairs), read)

    return [scene(p) for p in sorted(index.glob("[!.]*.npz"))]


def _check_files(index: Path, root: Path, names: Iterable[str]) -> None:
    """Says before the training what an index file names and the data set does not have."""
    for name in names:
        if not (root / name).is_file():
            raise EdmHlocError(
                f"training data: {index} names {name}, which is not in {root}: give the folder "
                "that these paths are relative to, with photos and depth maps unpacked."
            )


def scannet_scenes(root: Path, index: Path, min_overlap: float) -> list[TrainingScene]:
    """One scene for each index file of ScanNet; see `megadepth_scenes` for the arguments."""
    intrinsics = ScanNetIntrinsics(index / "intrinsics.npz")

    def scene(path: Path) -> TrainingScene:
        content = read_scannet_index(path, with_overlap=True)
        assert content.overlaps is not None
        pairs = [content.pairs[i] for i in np.flatnonzero(content.overlaps >= min_overlap)]
        for scan, *frames in pairs[:1]:
            files = [f"{scan}/color/{frame}.jpg" for frame in frames]
            _check_files(path, root, [*files, *(f"{scan}/depth/{frame}.png" for frame in frames)])

        def supervised_image(scan: str, frame: int) -> SupervisedImage:
            depth_path = root / scan / "depth" / f"{frame}.png"
            try:
                depth = cv2.imdecode(np.fromfile(depth_path, np.uint8), cv2.IMREAD_UNCHANGED)
            except (OSError, cv2.error) as error:
                raise ImageError(f"cannot read the depth map {depth_path}: {error}") from error
            if depth is None:
                raise ImageError(f"cannot read the depth map {depth_path}: not an image")
            image = read_grey(root / scan / "color" / f"{frame}.jpg")
            image = cv2.resize(image, depth.shape[::-1], interpolation=cv2.INTER_AREA)
            metres = depth.astype(np.float32) / 1000
            return SupervisedImage(image, metres, intrinsics.K(scan), None)

        def read(number: int) -> tuple[SupervisedImage, SupervisedImage, Array]:
            scan, *frames = pairs[number]
            pose0, pose1 = (read_scannet_pose(root / scan, frame) for frame in frames)
            image0, image1 = (supervised_image(scan, frame) for frame in frames)
            return image0, image1, pose1 @ np.linalg.inv(pose0)

        return TrainingScene(len(pairs), read)

    return [scene(p) for p in sorted(index.glob("[!.]*.npz")) if p != intrinsics.path]


@dataclass(frozen=True)
class _ModelImage:
    """A registered image of a COLMAP model.

    Attributes:
        name: path, relative to the folder of the photos.
        points: (P,) numbers of the 3D points that it observes.
        pixels: (P, 2) their projections by the model, in hloc's pixel frame.
        camera: its camera.
        cam_from_world: (4, 4).
    """

    name: str
    points: Array
    pixels: Array
    camera: Any
    cam_from_world: Array


def colmap_scenes(model: Path, images: Path) -> list[TrainingScene]:
    """One scene with the pairs of a COLMAP model's images that share `MIN_SHARED_POINTS`.

    Args:
        model: folder of the model.
        images: folder of its photos.
    """
    try:
        from scipy.sparse import triu

        from edm_hloc.base.colmap import posed_images, read_model
        from edm_hloc.images.sizes import fit_model
        from edm_hloc.pairs.covisibility import visibility
    except ImportError as error:
        raise EdmHlocError("training on a COLMAP model needs pycolmap and scipy") from error

    reconstruction, _ = fit_model(read_model(model), images, f"the model {model}")
    xyz = np.array([p.xyz for p in reconstruction.points3D.values()]).reshape(-1, 3)
    names, sees = visibility(reconstruction)
    posed = posed_images(reconstruction)
    model_images = []
    for i, name in enumerate(names):
        image, seen = posed[name], slice(*sees.indptr[i : i + 2])
        points = sees.indices[seen]
        pose = np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]])
        camera = reconstruction.cameras[image.camera_id]
        pixels = from_colmap(camera.img_from_cam(xyz[points] @ pose[:3, :3].T + pose[:3, 3]))
        keep = np.isfinite(pixels).all(axis=1)
        sees.data[seen] = keep
        model_images.append(_ModelImage(name, points[keep], pixels[keep], camera, pose))
    covisible = triu(sees @ sees.T >= MIN_SHARED_POINTS, k=1)
    pairs = [
        (model_images[i], model_images[j])
        for i, j in sorted(zip(*covisible.nonzero(), strict=True))
    ]
    if not pairs:
        raise EdmHlocError(
            f"no two images of the model {model} share {MIN_SHARED_POINTS} points; "
            "training needs a reconstruction with overlapping photos"
        )

    def read(number: int) -> tuple[SupervisedImage, SupervisedImage, Array]:
        a, b = pairs[number]
        _, in_a, in_b = np.intersect1d(a.points, b.points, assume_unique=True, return_indices=True)
        T = b.cam_from_world @ np.linalg.inv(a.cam_from_world)
        seen = ((a, a.pixels[in_a]), (b, b.pixels[in_b]))
        image0, image1 = (photo_of_model(images / i.name, i.camera, p) for i, p in seen)
        return image0, image1, T

    return [TrainingScene(len(pairs), read)]
