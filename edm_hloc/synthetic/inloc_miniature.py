"""A miniature of InLoc, in its folder layout, with the true poses beside it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edm_hloc.base.files import make_folder, write_whole
from edm_hloc.synthetic import layouts
from edm_hloc.synthetic.cameras import Cameras, intrinsics, look_at
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
from edm_hloc.synthetic.random_numbers import Random
from edm_hloc.synthetic.renderer.render import render_depth
from edm_hloc.synthetic.room_photos import RoomPhotographer
from edm_hloc.synthetic.shapes import Shapes

SCANS = 2
"""Scanner positions in each building."""
HOLES = 12
"""Circles in each scan where nothing was measured."""


def make_inloc(
    out: Path,
    views: int = 32,
    queries: int = 8,
    size: tuple[int, int] = (640, 480),
    seed: int = 0,
    depth_maps: bool = False,
) -> Path:
    """Render two rooms in the folder layout of InLoc.

    Each building (DUC1 and DUC2, a room each) has two scanner positions, whose panoramas are cut
    into photos. Writes `database/cutouts/DUC*/SCAN/DUC_cutout_SCAN_YAW_0.jpg` with a `.mat` (key
    XYZcut: points in the scanner's own frame, NaN where it measured nothing),
    `database/alignments/DUC*/transformations/` and `query/iphone7/IMG_*.JPG`; photos are grey. The
    truth lies beside: `truth`, a COLMAP model in text form with the cameras of all photos, and
    `truth/queries/DUC*.txt`, true poses, one a line: name qw qx qy qz tx ty tz.

    Args:
        out: made if necessary; the files of an earlier miniature there are removed.
        views: number of photos in the database, shared evenly between the scanner positions;
            rounded down to a multiple of four, at least four.
        queries: number of queries of both buildings.
        size: (width, height) of the database's photos, in pixels; queries are one pixel less in
            both.
        seed: of everything random.
        depth_maps: also write `depth/NAME.npy`, (H, W) float32, metres along the optical axis.

    Returns:
        `out`.

    Raises:
        EdmHlocError: `out` holds anything but a miniature.
    """
    from edm_hloc.localization.scans import CUTOUT_FOV
    from edm_hloc.pipelines.inloc import QUERY_FOCAL

    claim_miniature(out)
    database: list[PhotoTruth] = []
    groups: dict[str, list[PhotoTruth]] = {}
    for number, building in enumerate(("DUC1", "DUC2")):
        rng = Random(seed * 7919 + number)
        room = layouts.room(rng, 1)
        world = torch.eye(4)
        world[0, 3] = 100.0 * number  # the buildings lie side by side in one world
        photographer = RoomPhotographer.of(room.shapes, seed * 7919 + number, rng, size)
        spots = [_scanner_position(room, rng, size) for _ in range(SCANS)]
        for scan, spot in enumerate(spots):
            scan_id = f"{24 + scan + 10 * number:03d}"
            scanner = _room_from_scan(spot, rng)
            folder = f"database/alignments/{building}/transformations"
            note_rendered(out, alignment := f"{folder}/DUC_trans_{scan_id}.txt")
            _write_alignment(out / alignment, (world @ scanner).numpy())
            yaws = np.linspace(0, 360, max(1, views // (2 * SCANS)), endpoint=False)
            for yaw in yaws:
                name = f"database/cutouts/{building}/{scan_id}/DUC_cutout_{scan_id}_{yaw:g}_0.jpg"
                T = _level_camera(spot, math.radians(yaw))
                focal = size[0] / 2 / math.tan(CUTOUT_FOV / 2)
                pixels, photo = photographer.photo(name, T, focal, size, world)
                note_rendered(out, name, f"{name}.mat")
                write_photo(out / name, pixels)
                _write_scan(out / f"{name}.mat", photo, (world @ scanner).numpy(), rng)
                database.append(photo)
        small = (size[0] - 1, size[1] - 1)
        groups[building] = []
        for k in range((queries + 1 - number) // 2):
            name = f"query/iphone7/IMG_{700 + 100 * number + k:04d}.JPG"
            T = _query_pose(room, rng, small)
            pixels, photo = photographer.photo(name, T, max(small) * QUERY_FOCAL, small, world)
            note_rendered(out, name)
            write_photo(out / name, pixels)
            groups[building].append(photo)
    everything = [*database, *(photo for group in groups.values() for photo in group)]
    if depth_maps:
        for photo in everything:
            note_rendered(out, photo.depth_name)
            write_depth(out, photo)
    note_rendered(out, *TRUE_MODEL_FILES, *(f"truth/queries/{group}.txt" for group in groups))
    write_true_model(out / "truth", everything)
    write_query_poses(out / "truth" / "queries", groups)
    return out


def _level_camera(place: Tensor, yaw: float) -> Tensor:
    """cam_from_room (4, 4) of a level camera at `place` (3,), `yaw` radians off the x axis."""
    ahead = place + torch.tensor([math.cos(yaw), math.sin(yaw), 0.0])
    return look_at(place, ahead, torch.tensor(0.0))


def _scanner_position(room: layouts.Layout, rng: Random, size: tuple[int, int]) -> Tensor:
    """A position (3,) of twelve random ones, that with the most clearance on all four sides."""
    best, clearance = room.eye[0], -1.0
    for _ in range(12):
        share = rng.uniform(3) * torch.tensor([0.6, 0.6, 0.2]) + torch.tensor([0.2, 0.2, 0.4])
        place = room.camera_low[0] + share * (room.camera_high[0] - room.camera_low[0])
        around = [
            _clearance(room.shapes, _level_camera(place, k * math.pi / 2), size) for k in range(4)
        ]
        if min(around) > clearance:
            best, clearance = place, min(around)
    return best


def _query_pose(room: layouts.Layout, rng: Random, size: tuple[int, int]) -> Tensor:
    """cam_from_room (4, 4) of a hand-held query with enough clearance, or the most of twelve."""
    best, clearance = torch.eye(4), -1.0
    for _ in range(12):
        share = rng.uniform(3) * torch.tensor([0.8, 0.8, 0.3]) + torch.tensor([0.1, 0.1, 0.35])
        place = room.camera_low[0] + share * (room.camera_high[0] - room.camera_low[0])
        yaw, tilt = float(rng.uniform(1, high=2 * math.pi)), 0.15 * float(rng.normal(1))
        ahead = place + torch.tensor([math.cos(yaw), math.sin(yaw), math.tan(tilt)])
        T = look_at(place, ahead, 0.05 * rng.normal(1)[0])
        near = _clearance(room.shapes, T, size)
        if near > clearance:
            best, clearance = T, near
        if clearance > 1.2:
            break
    return best


def _clearance(shapes: Shapes, T: Tensor, size: tuple[int, int]) -> float:
    """The 5 % quantile of the depth of a view, in metres. T: (4, 4) cam_from_room."""
    width, height = max(32, size[0] // 8), max(24, size[1] // 8)
    K = intrinsics(torch.tensor([[0.7 * width]]), height, width)
    return float(
        render_depth(shapes, Cameras(K, T[None, None]), height, width).flatten().quantile(0.05)
    )


def _room_from_scan(place: Tensor, rng: Random) -> Tensor:
    """(4, 4): the scanner's own frame is rotated about the vertical and slightly tilted."""
    yaw = float(rng.uniform(1, high=2 * math.pi))
    scan_from_room = look_at(
        place, place + torch.tensor([math.cos(yaw), math.sin(yaw), 0.03]), torch.tensor(0.02)
    )
    return torch.linalg.inv(scan_from_room)


def _write_alignment(path: Path, world_from_scan: np.ndarray) -> None:
    """Write two matrices as the dataset does; the second, on lines 8 to 11, is the accurate one."""
    matrix = [" ".join(f"{value:.9f}" for value in row) for row in world_from_scan.tolist()]
    rough = [" ".join(f"{value:.1f}" for value in row) for row in world_from_scan.tolist()]
    lines = ["before", "", *rough, "after", *matrix]
    write_whole(path, "".join(f"{line}\n" for line in lines))


def _write_scan(path: Path, photo: PhotoTruth, world_from_scan: np.ndarray, rng: Random) -> None:
    """Write a photo's points in the scanner's frame, (H, W, 3) float32, with holes of NaN."""
    from scipy.io import savemat

    height, width = photo.depth.shape
    y, x = np.mgrid[:height, :width]
    z = photo.depth.ravel().astype(np.float64)
    rays = np.linalg.solve(photo.K, np.stack([x.ravel(), y.ravel(), np.ones(x.size)]))
    T = np.linalg.inv(photo.cam_from_world @ world_from_scan)  # scan_from_cam
    points = (T[:3, :3] @ (rays * z) + T[:3, 3:]).T.astype(np.float32)
    points[z <= 0] = np.nan
    scan = points.reshape(height, width, 3)
    for px, py, radius in rng.uniform(HOLES, 3).tolist():
        hole = np.hypot(x - px * width, y - py * height) < 0.06 * width * radius
        scan[hole] = np.nan
    make_folder(path.parent)
    savemat(path, {"XYZcut": scan}, do_compression=False)
