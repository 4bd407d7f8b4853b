"""Miniatures of Aachen Day-Night v1.1 and InLoc, in their layouts on disk, with the truth beside.

Both leave beside the files of the real datasets a folder `truth`: a COLMAP model in text form with
the cameras of all photos, database and queries, and `truth/queries/GROUP.txt`, the true poses of a
group of queries, one a line: name qw qx qy qz tx ty tz.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edm_hloc.synthetic import layouts
from edm_hloc.synthetic.dataset import (
    _arc,
    _paintings,
    _photo,
    _square,
    _View,
    _view,
    _write_depth,
    _write_photo,
    _write_truth,
)
from edm_hloc.synthetic.dressing import random_materials
from edm_hloc.synthetic.photometric import lamps, noise
from edm_hloc.synthetic.render import Lights, render, render_depth
from edm_hloc.synthetic.scene import Cameras, Materials, Random, Shapes, intrinsics, look_at
from edm_hloc.synthetic.textures import TextureBank, dead_leaves, facade

_MODEL_GRID = 16  # px between the points of the miniature's SIFT model
_SAME_DEPTH = 0.01  # a point is seen where the depth agrees to this share
_SCANS = 2  # scanner positions in each building
_HOLES = 12  # in each scan
_SURFACES = 6  # of a room
_TEXTURE_SIZE = 1024


# --------------------------------------------------------------------------- Aachen


def make_aachen(
    out: Path,
    views: int = 16,
    day: int = 4,
    night: int = 4,
    size: tuple[int, int] = (640, 480),
    seed: int = 0,
    depth_maps: bool = False,
) -> Path:
    """Render a town square as Aachen Day-Night v1.1 is stored; gives `out`.

    Writes `images_upright/{db,query}`, `3D-models/aachen_v_1_1` (a COLMAP model in binary form with
    points, as if from SIFT) and `queries/{day,night}_time_queries_with_intrinsics.txt`. Queries by
    day have another focal length, those by night also another size, lamps and noise.

    Args:
        views: photos of the database.
        day, night: queries.
        size: (width, height) of the database.
        depth_maps: write also `depth/NAME.npy`, (H, W) float32.
    """
    shapes, paints = _square(seed)
    bank = _paintings(seed)
    width, height = size
    phone = (int(0.9 * width) // 2 * 2 - 1, int(0.9 * height) // 2 * 2 - 1)
    groups = [
        ("db", views, size, 0.95, seed),
        ("query/day/nexus4", day, size, 1.1, seed + 101),
        ("query/night/nexus5x", night, phone, 0.85, seed + 202),
    ]
    photos: dict[str, list[_View]] = {}
    for folder, number, (w, h), focal, group_seed in groups:
        cameras = _arc(number, h, w, Random(group_seed))
        K = intrinsics(torch.full((number,), focal * w), h, w)[None]
        rng = Random(group_seed + 1)
        photos[folder] = []
        for k in range(number):
            one = Cameras(K[:, k, None], cameras.cam_from_world[:, k, None])
            pixels, depth = _photo(shapes, paints, one, bank, h, w, rng)
            if "night" in folder:
                pixels = _at_night(pixels, depth, group_seed + 10 * k)
            first = 2000 if "night" in folder else 1000  # file names alone tell queries apart
            name = f"db/{k + 1}.jpg" if folder == "db" else f"{folder}/IMG_{first + k}.jpg"
            _write_photo(out / "images_upright" / name, pixels)
            view = _view(name, one, (w, h), depth)
            photos[folder].append(view)
            if depth_maps:
                _write_depth(out / "depth", view)
    database, by_day, by_night = photos.values()
    _write_sift_model(out / "3D-models" / "aachen_v_1_1", database)
    for hour, queries in (("day", by_day), ("night", by_night)):
        # SIMPLE_RADIAL as in the real lists, without distortion
        lines = [
            f"{view.name} SIMPLE_RADIAL {view.size[0]} {view.size[1]} "
            f"{' '.join(map(repr, view.colmap_params))} 0.0"
            for view in queries
        ]
        _write_text(out / "queries" / f"{hour}_time_queries_with_intrinsics.txt", lines)
    _write_truth(out / "truth", [*database, *by_day, *by_night])
    _write_queries(out / "truth" / "queries", {"day": by_day, "night": by_night})
    return out


def _at_night(photo: np.ndarray, depth: np.ndarray, seed: int) -> np.ndarray:
    """The same photo under lamps: dark, warm, noisy. (H, W, 3) uint8 in OpenCV's order."""
    lit = torch.from_numpy(photo).permute(2, 0, 1).float() / 255
    distance = torch.from_numpy(depth)[None]
    # the same lamps in each channel
    dark = torch.cat([lamps(channel[None], distance, Random(seed)) for channel in lit])
    gain = 0.3 / float(dark.mean())
    dark = dark * torch.tensor([0.7, 0.9, 1.1])[:, None, None] * min(gain, 2.5)
    dark = noise(
        dark.clamp(0, 1), Random(seed + 1), torch.full((3,), 600.0), torch.full((3,), 0.01)
    )
    pixels = dark.clamp(0, 1).mul(255).round().to(torch.uint8)
    return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())


def _write_sift_model(folder: Path, views: Sequence[_View]) -> None:
    """A COLMAP model with points on a grid of each photo, seen wherever the depth agrees."""
    import pycolmap

    tracks, points = [], []
    for k, view in enumerate(views):
        for point in _grid_points(view):
            seen = [(j, xy) for j, other in enumerate(views) if (xy := _seen(other, point))]
            if len(seen) >= 2 and min(j for j, _ in seen) == k:  # else an earlier photo made it
                points.append(point)
                tracks.append(seen)
    model = pycolmap.Reconstruction()
    for k, view in enumerate(views, start=1):
        camera = pycolmap.Camera(
            camera_id=k,
            model="SIMPLE_RADIAL",
            width=view.size[0],
            height=view.size[1],
            params=[*view.colmap_params, 0.0],
        )
        model.add_camera_with_trivial_rig(camera)
    observed: list[list[tuple[float, float]]] = [[] for _ in views]
    elements = []
    for track in tracks:
        elements.append([(j + 1, len(observed[j])) for j, _ in track])
        for j, (x, y) in track:
            observed[j].append((x + 0.5, y + 0.5))
    for k, view in enumerate(views, start=1):
        image = pycolmap.Image(name=view.name, camera_id=k, image_id=k)
        image.points2D = pycolmap.Point2DList(
            [pycolmap.Point2D(np.array(xy)) for xy in observed[k - 1]]
        )
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(view.cam_from_world[:3]))
    for point, element in zip(points, elements, strict=True):
        seen_in = [pycolmap.TrackElement(i, j) for i, j in element]
        model.add_point3D(point, pycolmap.Track(seen_in))
    folder.mkdir(parents=True, exist_ok=True)
    model.write_binary(folder)
    for newer in ("rigs.bin", "frames.bin"):  # which the dataset's own model is too old for
        (folder / newer).unlink(missing_ok=True)


def _grid_points(view: _View) -> np.ndarray:
    """(N, 3) world points of a grid of pixels with depth."""
    height, width = view.depth.shape
    y, x = np.mgrid[_MODEL_GRID // 2 : height : _MODEL_GRID, _MODEL_GRID // 2 : width : _MODEL_GRID]
    x, y = x.ravel(), y.ravel()
    z = view.depth[y, x].astype(np.float64)
    rays = np.linalg.solve(view.K, np.stack([x, y, np.ones(len(x))]))
    T = view.cam_from_world
    return ((rays * z - T[:3, 3:]).T @ T[:3, :3])[z > 0]


def _seen(view: _View, point: np.ndarray) -> tuple[float, float] | None:
    """Where a photo shows a world point, hloc's frame; None where it does not."""
    x, y, z = view.K @ (view.cam_from_world[:3, :3] @ point + view.cam_from_world[:3, 3])
    if z <= 0:
        return None
    column, row = round(x / z), round(y / z)
    width, height = view.size
    if not (0 <= column < width and 0 <= row < height):
        return None
    agrees = abs(view.depth[row, column] / z - 1) < _SAME_DEPTH
    return (float(x / z), float(y / z)) if agrees else None


# --------------------------------------------------------------------------- InLoc


def make_inloc(
    out: Path,
    views: int = 32,
    queries: int = 8,
    size: tuple[int, int] = (640, 480),
    seed: int = 0,
    depth_maps: bool = False,
) -> Path:
    """Render two rooms as InLoc is stored; gives `out`.

    Each building (DUC1, DUC2; a room) has two scanners, whose panoramas are cut into photos. Writes
    `database/cutouts/DUC*/SCAN/DUC_cutout_SCAN_YAW_0.jpg` with a `.mat` (XYZcut: the scanner's own
    frame, NaN where it measured nothing), `database/alignments/DUC*/transformations/` and
    `query/iphone7/IMG_*.JPG`. Rooms are grey.

    Args:
        views: photos of the database, shared out evenly: a multiple of four is all used.
        queries: of both buildings.
        size: (width, height) of the photos of the database; queries are one less in both.
        depth_maps: write also `depth/NAME.npy`, (H, W) float32.
    """
    from edm_hloc.localization.scans import CUTOUT_FOV
    from edm_hloc.pipelines.inloc import QUERY_FOCAL

    database: list[_View] = []
    groups: dict[str, list[_View]] = {}
    for number, building in enumerate(("DUC1", "DUC2")):
        rng = Random(seed * 7919 + number)
        bank = _room_paintings(seed * 7919 + number)
        room = layouts.room(rng, 1)
        world = torch.eye(4)
        world[0, 3] = 100.0 * number  # each building elsewhere in one world
        painter = _RoomPainter(room.shapes, bank, rng, size)
        spots = [_free_spot(room, rng, size) for _ in range(_SCANS)]
        for scan, spot in enumerate(spots):
            scan_id = f"{24 + scan + 10 * number:03d}"
            scanner = _scanner(spot, rng)
            folder = out / "database" / "alignments" / building / "transformations"
            _write_alignment(folder / f"DUC_trans_{scan_id}.txt", (world @ scanner).numpy())
            yaws = np.linspace(0, 360, max(1, views // (2 * _SCANS)), endpoint=False)
            for yaw in yaws:
                name = f"database/cutouts/{building}/{scan_id}/DUC_cutout_{scan_id}_{yaw:g}_0.jpg"
                T = _level(spot, math.radians(yaw))
                focal = size[0] / 2 / math.tan(CUTOUT_FOV / 2)
                pixels, view = painter.photo(name, T, focal, size, world)
                _write_photo(out / name, pixels)
                _write_scan(out / f"{name}.mat", view, (world @ scanner).numpy(), rng)
                database.append(view)
        small = (size[0] - 1, size[1] - 1)
        groups[building] = []
        for k in range((queries + 1 - number) // 2):
            name = f"query/iphone7/IMG_{700 + 100 * number + k:04d}.JPG"
            T = _free_view(room, rng, small)
            pixels, view = painter.photo(name, T, max(small) * QUERY_FOCAL, small, world)
            _write_photo(out / name, pixels)
            groups[building].append(view)
    everything = [*database, *(view for group in groups.values() for view in group)]
    if depth_maps:
        for view in everything:
            _write_depth(out / "depth", view)
    _write_truth(out / "truth", everything)
    _write_queries(out / "truth" / "queries", groups)
    return out


def _room_paintings(seed: int) -> TextureBank:
    """One texture for each surface of a room, then those of the things in it."""
    rng = np.random.default_rng(seed)
    painted = [dead_leaves(_TEXTURE_SIZE, rng) for _ in range(_SURFACES + 3)]
    painted += [facade(_TEXTURE_SIZE, rng) for _ in range(3)]
    return TextureBank(torch.from_numpy(np.stack(painted)))


def _unmistakable(materials: Materials, shapes: Shapes, bank: TextureBank) -> Materials:
    """No surface of the room repeats another's texture, nor its own: a query has one place."""
    sides = shapes.quads[0, :, 1:].norm(dim=-1) * shapes.quad_present[0, :, None]
    texture, x, y = materials.texture.clone(), materials.x.clone(), materials.y.clone()
    width, height = materials.width.clone(), materials.height.clone()
    for k, i in enumerate(sides.prod(dim=-1).topk(_SURFACES).indices.tolist()):
        texture[0, i] = k
        texels = 0.98 * bank.size / sides[i].max()
        width[0, i], height[0, i] = sides[i] * texels
        x[0, i] = y[0, i] = 0.01 * bank.size
    return replace(materials, texture=texture, x=x, y=y, width=width, height=height)


class _RoomPainter:
    """Photographs one room, always with the same materials."""

    def __init__(
        self, shapes: Shapes, bank: TextureBank, rng: Random, size: tuple[int, int]
    ) -> None:
        self.shapes, self.bank, self.rng = shapes, bank, rng
        span = torch.tensor([4.0])
        drawn = random_materials(shapes, span, max(size), bank, rng, difficulty=0.0)
        self.materials = _unmistakable(drawn, shapes, bank)

    def photo(
        self, name: str, T: Tensor, focal: float, size: tuple[int, int], world: Tensor
    ) -> tuple[np.ndarray, _View]:
        """(H, W) uint8 and its camera; T: cam_from_room (4, 4), world: world_from_room."""
        width, height = size
        camera = Cameras(intrinsics(torch.tensor([[focal]]), height, width), T[None, None])
        above = torch.tensor([[[0.2, 0.1, 1.0]]])
        lights = Lights(above / above.norm(), torch.full((1, 1), 0.75), torch.full((1, 1), 0.3))
        out = render(self.shapes, self.materials, camera, lights, self.bank, height, width)
        grainy = noise(out.image[0], self.rng, torch.tensor([8000.0]), torch.tensor([0.004]))[0]
        pixels = grainy.clamp(0, 1).mul(255).round().to(torch.uint8).numpy()
        moved = Cameras(camera.K, (T @ torch.linalg.inv(world))[None, None])
        return pixels, _view(name, moved, size, out.depth[0, 0].numpy())


def _level(place: Tensor, yaw: float) -> Tensor:
    """cam_from_room (4, 4) of a level camera at `place`, `yaw` radians off the x axis."""
    ahead = place + torch.tensor([math.cos(yaw), math.sin(yaw), 0.0])
    return look_at(place, ahead, torch.tensor(0.0))


def _free_spot(room: layouts.Layout, rng: Random, size: tuple[int, int]) -> Tensor:
    """Where a scanner can stand: nothing right before it on any side."""
    best, clearance = room.eye[0], -1.0
    for _ in range(12):
        share = rng.uniform(3) * torch.tensor([0.6, 0.6, 0.2]) + torch.tensor([0.2, 0.2, 0.4])
        place = room.camera_low[0] + share * (room.camera_high[0] - room.camera_low[0])
        around = [_near(room.shapes, _level(place, k * math.pi / 2), size) for k in range(4)]
        if min(around) > clearance:
            best, clearance = place, min(around)
    return best


def _free_view(room: layouts.Layout, rng: Random, size: tuple[int, int]) -> Tensor:
    """cam_from_room of a query: by hand, some way from what it shows."""
    best, clearance = torch.eye(4), -1.0
    for _ in range(12):
        share = rng.uniform(3) * torch.tensor([0.8, 0.8, 0.3]) + torch.tensor([0.1, 0.1, 0.35])
        place = room.camera_low[0] + share * (room.camera_high[0] - room.camera_low[0])
        yaw, tilt = float(rng.uniform(1, high=2 * math.pi)), 0.15 * float(rng.normal(1))
        ahead = place + torch.tensor([math.cos(yaw), math.sin(yaw), math.tan(tilt)])
        T = look_at(place, ahead, 0.05 * rng.normal(1)[0])
        near = _near(room.shapes, T, size)
        if near > clearance:
            best, clearance = T, near
        if clearance > 1.2:
            break
    return best


def _near(shapes: Shapes, T: Tensor, size: tuple[int, int]) -> float:
    """Depth that a twentieth of the view falls short of, metres."""
    width, height = max(32, size[0] // 8), max(24, size[1] // 8)
    K = intrinsics(torch.tensor([[0.7 * width]]), height, width)
    return float(
        render_depth(shapes, Cameras(K, T[None, None]), height, width).flatten().quantile(0.05)
    )


def _scanner(place: Tensor, rng: Random) -> Tensor:
    """room_from_scan (4, 4): the scanner's own frame is turned about the vertical and tilted."""
    yaw = float(rng.uniform(1, high=2 * math.pi))
    scan_from_room = look_at(
        place, place + torch.tensor([math.cos(yaw), math.sin(yaw), 0.03]), torch.tensor(0.02)
    )
    return torch.linalg.inv(scan_from_room)


def _write_alignment(path: Path, world_from_scan: np.ndarray) -> None:
    """As the dataset's: two matrices, of which the second, on lines 8 to 11, is the better one."""
    matrix = [" ".join(f"{value:.9f}" for value in row) for row in world_from_scan.tolist()]
    rough = [" ".join(f"{value:.1f}" for value in row) for row in world_from_scan.tolist()]
    _write_text(path, ["before", "", *rough, "after", *matrix])


def _write_scan(path: Path, view: _View, world_from_scan: np.ndarray, rng: Random) -> None:
    from scipy.io import savemat

    height, width = view.depth.shape
    y, x = np.mgrid[:height, :width]
    z = view.depth.ravel().astype(np.float64)
    rays = np.linalg.solve(view.K, np.stack([x.ravel(), y.ravel(), np.ones(x.size)]))
    T = np.linalg.inv(view.cam_from_world @ world_from_scan)  # scan_from_cam
    points = (T[:3, :3] @ (rays * z) + T[:3, 3:]).T.astype(np.float32)
    points[z <= 0] = np.nan
    scan = points.reshape(height, width, 3)
    for px, py, radius in rng.uniform(_HOLES, 3).tolist():
        hole = np.hypot(x - px * width, y - py * height) < 0.06 * width * radius
        scan[hole] = np.nan
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"XYZcut": scan}, do_compression=False)


# --------------------------------------------------------------------------- files


def _write_text(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def _write_queries(folder: Path, groups: dict[str, list[_View]]) -> None:
    """The true poses of each group of queries, `truth/queries/GROUP.txt`."""
    import pycolmap

    from edm_hloc.localization.poses import write_poses

    for group, queries in groups.items():
        poses = {view.name: pycolmap.Rigid3d(view.cam_from_world[:3]) for view in queries}
        write_poses(folder / f"{group}.txt", poses)
