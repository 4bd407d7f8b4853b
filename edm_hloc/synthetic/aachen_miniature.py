"""A miniature of Aachen Day-Night v1.1, in its folder layout, with the true poses beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from edm_hloc.base.files import make_folder, write_whole
from edm_hloc.base.frames import to_colmap
from edm_hloc.synthetic.cameras import Cameras, intrinsics
from edm_hloc.synthetic.photo_truth import (
    TRUE_MODEL_FILES,
    PhotoTruth,
    claim_miniature,
    note_rendered,
    write_depth,
    write_photo,
    write_query_poses,
    write_true_model,
)
from edm_hloc.synthetic.photometric_effects import lamplight, noise
from edm_hloc.synthetic.random_numbers import Random
from edm_hloc.synthetic.town_square import TownSquare, arc_of_cameras

_MODEL = "3D-models/aachen_v_1_1"
POINT_SPACING = 16
"""Pixels between the points of the SIFT model, along each axis of a photo."""
DEPTH_TOLERANCE = 0.01
"""A photo shows a point where its depth agrees to this share."""


def make_aachen(
    out: Path,
    views: int = 16,
    queries: tuple[int, int] = (4, 4),
    size: tuple[int, int] = (640, 480),
    seed: int = 0,
    depth_maps: bool = False,
) -> Path:
    """Render a town square in the folder layout of Aachen Day-Night v1.1.

    Writes `images_upright/{db,query}`, `3D-models/aachen_v_1_1` (a COLMAP model in binary form with
    points, as if from SIFT) and `queries/{day,night}_time_queries_with_intrinsics.txt`. Queries by
    day have another focal length than the database, those by night also another size, lamplight and
    more noise. The truth lies beside: `truth`, a COLMAP model in text form with the cameras of all
    photos, and `truth/queries/{day,night}.txt`, true poses, one a line: name qw qx qy qz tx ty tz.

    Args:
        out: made if necessary; the files of an earlier miniature there are removed.
        views: number of photos in the database.
        queries: numbers of queries by day and by night.
        size: (width, height) of the database's photos, in pixels.
        seed: of everything random.
        depth_maps: also write `depth/NAME.npy`, (H, W) float32, metres along the optical axis.

    Returns:
        `out`.

    Raises:
        EdmHlocError: `out` holds anything but a miniature.
    """
    claim_miniature(out)
    square = TownSquare.build(seed)
    width, height = size
    phone = (int(0.9 * width) // 2 * 2 - 1, int(0.9 * height) // 2 * 2 - 1)
    groups = [
        ("db", views, size, 0.95, seed),
        ("query/day/nexus4", queries[0], size, 1.1, seed + 101),
        ("query/night/nexus5x", queries[1], phone, 0.85, seed + 202),
    ]
    photos: dict[str, list[PhotoTruth]] = {}
    for folder, number, (w, h), focal, group_seed in groups:
        cameras = arc_of_cameras(number, h, w, Random(group_seed))
        K = intrinsics(torch.full((number,), focal * w), h, w)[None]
        rng = Random(group_seed + 1)
        photos[folder] = []
        for k in range(number):
            one = Cameras(K[:, k, None], cameras.cam_from_world[:, k, None])
            pixels, depth = square.photograph(one, (w, h), rng)
            if "night" in folder:
                pixels = _at_night(pixels, depth, group_seed + 10 * k)
            first = 2000 if "night" in folder else 1000  # file names without folders are unique
            name = f"db/{k + 1}.jpg" if folder == "db" else f"{folder}/IMG_{first + k}.jpg"
            note_rendered(out, f"images_upright/{name}")
            write_photo(out / "images_upright" / name, pixels)
            photo = PhotoTruth.of(name, one, (w, h), depth)
            photos[folder].append(photo)
            if depth_maps:
                note_rendered(out, photo.depth_name)
                write_depth(out, photo)
    database, by_day, by_night = photos.values()
    note_rendered(out, *(f"{_MODEL}/{part}.bin" for part in ("cameras", "images", "points3D")))
    _write_sift_model(out / _MODEL, database)
    for hour, group in (("day", by_day), ("night", by_night)):
        # SIMPLE_RADIAL as in the real lists, without distortion
        lines = [
            f"{photo.name} SIMPLE_RADIAL {photo.size[0]} {photo.size[1]} "
            f"{' '.join(map(repr, photo.colmap_params))} 0.0\n"
            for photo in group
        ]
        listed = f"queries/{hour}_time_queries_with_intrinsics.txt"
        note_rendered(out, listed, f"truth/queries/{hour}.txt")
        write_whole(out / listed, "".join(lines))
    note_rendered(out, *TRUE_MODEL_FILES)
    write_true_model(out / "truth", [*database, *by_day, *by_night])
    write_query_poses(out / "truth" / "queries", {"day": by_day, "night": by_night})
    return out


def _at_night(photo: np.ndarray, depth: np.ndarray, seed: int) -> np.ndarray:
    """The photo by lamplight: dark, reddish, noisy. (H, W, 3) uint8, blue first."""
    lit = torch.from_numpy(photo).permute(2, 0, 1).float() / 255
    distance = torch.from_numpy(depth)[None]
    # one seed for all channels: the lamps are the same
    dark = torch.cat([lamplight(channel[None], distance, Random(seed)) for channel in lit])
    gain = 0.3 / float(dark.mean())
    dark = dark * torch.tensor([0.7, 0.9, 1.1])[:, None, None] * min(gain, 2.5)
    photons, read_noise = torch.full((3,), 600.0), torch.full((3,), 0.01)
    dark = noise(dark.clamp(0, 1), Random(seed + 1), photons, read_noise)
    pixels = dark.clamp(0, 1).mul(255).round().to(torch.uint8)
    return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())


def _write_sift_model(folder: Path, photos: Sequence[PhotoTruth]) -> None:
    """Write a COLMAP model whose points lie on a grid of each photo.

    A point is observed in every photo whose depth there agrees; its tracks have at least two.
    """
    import pycolmap

    tracks, points = [], []
    for k, photo in enumerate(photos):
        for point in _grid_points(photo):
            seen = [(j, xy) for j, other in enumerate(photos) if (xy := _project(other, point))]
            if (
                len(seen) >= 2 and min(j for j, _ in seen) == k
            ):  # else an earlier photo has given it
                points.append(point)
                tracks.append(seen)
    model = pycolmap.Reconstruction()
    for k, photo in enumerate(photos, start=1):
        camera = pycolmap.Camera(
            camera_id=k,
            model="SIMPLE_RADIAL",
            width=photo.size[0],
            height=photo.size[1],
            params=[*photo.colmap_params, 0.0],
        )
        model.add_camera_with_trivial_rig(camera)
    observed: list[list[tuple[float, float]]] = [[] for _ in photos]
    elements = []
    for track in tracks:
        elements.append([(j + 1, len(observed[j])) for j, _ in track])
        for j, (x, y) in track:
            observed[j].append((x, y))
    for k, photo in enumerate(photos, start=1):
        image = pycolmap.Image(name=photo.name, camera_id=k, image_id=k)
        image.points2D = pycolmap.Point2DList(
            [pycolmap.Point2D(to_colmap(xy)) for xy in observed[k - 1]]
        )
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(photo.cam_from_world[:3]))
    for point, element in zip(points, elements, strict=True):
        seen_in = [pycolmap.TrackElement(i, j) for i, j in element]
        model.add_point3D(point, pycolmap.Track(seen_in))
    make_folder(folder)
    model.write_binary(folder)
    for newer in ("rigs.bin", "frames.bin"):  # the dataset's own model is older than these
        (folder / newer).unlink(missing_ok=True)


def _grid_points(photo: PhotoTruth) -> np.ndarray:
    """World points (N, 3) of those pixels of a grid that have depth."""
    height, width = photo.depth.shape
    y, x = np.mgrid[
        POINT_SPACING // 2 : height : POINT_SPACING, POINT_SPACING // 2 : width : POINT_SPACING
    ]
    x, y = x.ravel(), y.ravel()
    z = photo.depth[y, x].astype(np.float64)
    rays = np.linalg.solve(photo.K, np.stack([x, y, np.ones(len(x))]))
    T = photo.cam_from_world
    return ((rays * z - T[:3, 3:]).T @ T[:3, :3])[z > 0]


def _project(photo: PhotoTruth, point: np.ndarray) -> tuple[float, float] | None:
    """The pixel at which a photo shows a world point, in hloc's frame; None if it does not."""
    x, y, z = photo.K @ (photo.cam_from_world[:3, :3] @ point + photo.cam_from_world[:3, 3])
    if z <= 0:
        return None
    column, row = round(x / z), round(y / z)
    width, height = photo.size
    if not (0 <= column < width and 0 <= row < height):
        return None
    agrees = abs(photo.depth[row, column] / z - 1) < DEPTH_TOLERANCE
    return (float(x / z), float(y / z)) if agrees else None
