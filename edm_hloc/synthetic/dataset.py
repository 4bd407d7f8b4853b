"""Photos of one synthetic place with their exact cameras: for the demo and end-to-end tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from edm_hloc.synthetic.photometric import noise
from edm_hloc.synthetic.render import Lights, render
from edm_hloc.synthetic.scene import (
    Cameras,
    Materials,
    Random,
    Shapes,
    ShapesBuilder,
    intrinsics,
    look_at,
    rotation,
)
from edm_hloc.synthetic.textures import TextureBank, dead_leaves, facade

_TEXTURE_SIZE = 1024


@dataclass(frozen=True)
class _Paint:
    """A material: texture, texels per metre (None: the texture spans a face), colour, contrast."""

    texture: int
    density: float | None
    colour: tuple[float, float, float]
    contrast: float = 0.75


@dataclass(frozen=True)
class _View:
    """A rendered photo; K in hloc's frame, depth (H, W) along the optical axis, 0 for the sky."""

    name: str
    K: np.ndarray
    cam_from_world: np.ndarray  # (4, 4)
    size: tuple[int, int]
    depth: np.ndarray

    @property
    def colmap_params(self) -> list[float]:
        """Focal length and principal point, in COLMAP's frame."""
        return [float(self.K[0, 0]), float(self.K[0, 2]) + 0.5, float(self.K[1, 2]) + 0.5]


def make_photo_collection(
    out_dir: Path,
    views: int = 12,
    size: tuple[int, int] = (640, 480),
    seed: int = 0,
    textures: TextureBank | None = None,
    depth_maps: bool = False,
) -> Path:
    """Render photos of a small town square from an arc around it, with their true cameras.

    Writes `out_dir/images/view_00.jpg`, …; `out_dir/truth`, a COLMAP model in text form without
    points (one SIMPLE_PINHOLE camera, metres); and with `depth_maps` also
    `out_dir/depth/view_00.npy`, …, (H, W) float32 metres along the optical axis, 0 for the sky.
    The same arguments give the same collection.

    Args:
        size: (width, height) of the photos.
        textures: what the surfaces are covered with; None: façades and leaves painted by the
        package.

    Returns:
        The folder of the photos.
    """
    width, height = size
    shapes, paints = _square(seed)
    bank = _paintings(seed) if textures is None else textures
    cameras = _arc(views, height, width, Random(seed))
    images_dir = out_dir / "images"
    rng = Random(seed + 1)
    taken = []
    for number in range(views):
        one = Cameras(cameras.K[:, number, None], cameras.cam_from_world[:, number, None])
        photo, depth = _photo(shapes, paints, one, bank, height, width, rng)
        view = _view(f"view_{number:02d}.jpg", one, size, depth)
        _write_photo(images_dir / view.name, photo)
        if depth_maps:
            _write_depth(out_dir / "depth", view)
        taken.append(view)
    _write_truth(out_dir / "truth", taken)
    return images_dir


def _photo(
    shapes: Shapes,
    paints: dict[int, _Paint],
    camera: Cameras,
    bank: TextureBank,
    height: int,
    width: int,
    rng: Random,
) -> tuple[np.ndarray, np.ndarray]:
    """Render one view: (H, W, 3) uint8 in OpenCV's order of colours, and its depth (H, W)."""
    sun = torch.nn.functional.normalize(torch.tensor([[[-0.5, -0.7, 0.8]]]), dim=-1)
    exposure = 1 + 0.06 * float(rng.normal(1))
    lights = Lights(sun, torch.full((1, 1), 0.55 * exposure), torch.full((1, 1), 0.6 * exposure))
    channels = []
    for channel in (2, 1, 0):
        materials = _materials(shapes, paints, bank, channel)
        out = render(shapes, materials, camera, lights, bank, height, width)
        channels.append(noise(out.image[0], rng, torch.tensor([8000.0]), torch.tensor([0.004]))[0])
    photo = torch.stack(channels, -1).clamp(0, 1).mul(255).round().to(torch.uint8)
    return photo.numpy(), out.depth[0, 0].numpy()


def _materials(
    shapes: Shapes, paints: dict[int, _Paint], bank: TextureBank, channel: int
) -> Materials:
    """Materials of one colour channel; the sky comes last."""
    length = shapes.quads[0, :, 1:].norm(dim=-1)
    girth = 3 * shapes.round_axes[0].square().sum(-2).prod(-1) ** (1 / 6)
    length = torch.cat([length, girth[:, None].expand(-1, 2), torch.ones(1, 2)])
    groups = [*shapes.quad_group[0].tolist(), *shapes.round_group[0].tolist(), -1]
    rows = []
    for number, (group, (u, v)) in enumerate(zip(groups, length.tolist(), strict=True)):
        paint = paints[group]
        whole = paint.density is None
        scale = bank.size / max(u, v) if paint.density is None else paint.density
        colour = paint.colour[channel]
        sky = group == -1
        rows.append(
            {
                "texture": paint.texture % len(bank),
                "x": 0.0 if whole else 97.0 * number,
                "y": 0.0 if whole else 61.0 * number,
                "width": u * scale,
                "height": v * scale,
                "gain": 0.25 if sky else paint.contrast * colour,
                "offset": colour if sky else 0.62 * colour,
                "blur": 4.0 if sky else 0.0,
            }
        )
    return Materials(**{name: torch.tensor([[row[name] for row in rows]]) for name in rows[0]})


def _paintings(seed: int) -> TextureBank:
    """Textures 0 to 3 are façades, 4 to 7 dead leaves."""
    rng = np.random.default_rng(seed)
    painted = [facade(_TEXTURE_SIZE, rng) for _ in range(4)]
    painted += [dead_leaves(_TEXTURE_SIZE, rng) for _ in range(4)]
    return TextureBank(torch.from_numpy(np.stack(painted)))


def _arc(views: int, height: int, width: int, rng: Random) -> Cameras:
    """Cameras along an arc before the square, at different heights, looking at its middle."""
    angle = torch.linspace(-0.75, 0.75, views) + 0.04 * rng.normal(views)
    distance = rng.uniform(views, low=14, high=18)
    up = rng.uniform(views, low=1.6, high=5)
    centre = torch.stack([distance * angle.sin(), -distance * angle.cos(), up], -1)
    target = torch.tensor([0.0, 0.5, 2.8]) + 0.35 * rng.normal(views, 3)
    focal = torch.full((views,), 0.95 * width)
    T = look_at(centre, target, 0.03 * rng.normal(views))
    return Cameras(intrinsics(focal, height, width)[None], T[None])


def _view(name: str, camera: Cameras, size: tuple[int, int], depth: np.ndarray) -> _View:
    K = camera.K[0, 0].double().numpy()
    T = camera.cam_from_world[0, 0].double().numpy()
    U, _, Vt = np.linalg.svd(T[:3, :3])  # single precision left it a little off
    T[:3, :3] = U @ Vt
    return _View(name, K, T, size, depth)


def _write_photo(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # imencode and tofile, since cv2.imwrite fails on some non-ASCII paths.
    _, blob = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])
    blob.tofile(path)


def _write_depth(folder: Path, view: _View) -> None:
    path = (folder / view.name).with_suffix(".npy")
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, view.depth)


def _write_truth(folder: Path, views: Sequence[_View]) -> None:
    """A COLMAP model in text form with the photos' cameras; equal intrinsics are one camera."""
    import pycolmap  # here, so that rendering needs torch, NumPy and OpenCV only

    model = pycolmap.Reconstruction()
    numbers: dict[tuple, int] = {}
    for k, view in enumerate(views, start=1):
        (width, height), params = view.size, view.colmap_params
        camera_id = numbers.setdefault((width, height, *params), len(numbers) + 1)
        if not model.exists_camera(camera_id):
            camera = pycolmap.Camera(
                model="SIMPLE_PINHOLE",
                width=width,
                height=height,
                params=params,
                camera_id=camera_id,
            )
            model.add_camera_with_trivial_rig(camera)
        image = pycolmap.Image(name=view.name, camera_id=camera_id, image_id=k)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(view.cam_from_world[:3]))
    folder.mkdir(parents=True, exist_ok=True)
    model.write_text(folder)


def _square(seed: int) -> tuple[Shapes, dict[int, _Paint]]:
    """Houses, one with steps and columns, a tower, a statue, trees and crates on the ground."""
    build = ShapesBuilder(1, torch.device("cpu"))
    paints: dict[int, _Paint] = {-1: _Paint(7, None, (0.62, 0.74, 0.9))}
    stone, plaster, brick = (0.86, 0.82, 0.72), (0.92, 0.85, 0.68), (0.8, 0.6, 0.5)
    roof, leaf, earth, wood = (
        (0.62, 0.4, 0.34),
        (0.5, 0.68, 0.38),
        (0.72, 0.7, 0.64),
        (0.7, 0.55, 0.4),
    )

    def paint(
        texture: int,
        density: float | None,
        colour: tuple[float, float, float],
        contrast: float = 0.75,
    ) -> Tensor:
        group = build.new_groups(1)
        paints[int(group)] = _Paint(texture, density, colour, contrast)
        return group

    def box(
        place: tuple[float, float, float],
        size: tuple[float, float, float],
        group: Tensor,
        turn: float = 0.0,
        lean: float = 0.0,
        faces: tuple[int, ...] = (0, 2, 3, 4, 5),
    ) -> None:
        """A box standing on `place`, turned about z, leaning about its own x axis."""
        centre = torch.tensor([[[place[0], place[1], place[2] + size[2] / 2]]])
        angles = torch.tensor([[[lean, 0.0, turn]]])
        build.add_boxes(centre, torch.tensor([[size]]), rotation(angles), group=group, faces=faces)

    def house(
        place: tuple[float, float, float],
        size: tuple[float, float, float],
        texture: int,
        colour: tuple[float, float, float],
        turn: float = 0.0,
    ) -> None:
        """Walls with a painted façade under a gable roof, half of a box standing on its edge."""
        box(place, size, paint(texture, None, colour, 1.2), turn, faces=(2, 4, 5))
        box(place, size, paint(4, 60, colour), turn, faces=(0, 3))
        ridge = size[1] / 2**0.5 * 1.06
        top = (place[0], place[1], place[2] + size[2] - ridge / 2)
        box(top, (size[0] * 1.04, ridge, ridge), paint(5, 70, roof), turn, math.pi / 4)

    def round_(
        place: tuple[float, float, float],
        radii: tuple[float, float, float],
        group: Tensor,
        cylinder: bool = False,
    ) -> None:
        """An ellipsoid about `place`, or an upright cylinder of half height radii[1]."""
        axes = torch.diag(torch.tensor(radii))
        if cylinder:
            axes = axes[:, [0, 1, 2]][[0, 2, 1]]
        build.add_round(torch.tensor([[place]]), axes[None, None], group=group, cylinder=cylinder)

    ground = torch.tensor([[[-40.0, -40, 0], [80, 0, 0], [0, 80, 0]]])
    build.add_quads(ground[None, 0:1].view(1, 1, 3, 3), group=paint(4, 55, earth))
    house((0, 4.0, 0), (9, 5, 5), 0, plaster)
    house((-8.5, 2.0, 0), (5.5, 4.5, 4), 1, stone, 0.45)
    house((11.0, 7.5, 0), (6, 5, 4.5), 2, brick, -0.5)
    box((6.0, 2.6, 0), (2.8, 2.8, 9), paint(3, None, stone, 1.2))
    box((6.0, 2.6, 9), (2.1, 2.1, 1.6), paint(6, 80, stone), 0.5)
    box((0, 14, 0), (70, 1, 3.5), paint(5, 40, stone), faces=(0, 2))

    pale = paint(6, 110, (0.9, 0.88, 0.84))
    for step in range(3):  # before the door
        box((0, 0.9 - 0.25 * step, 0.45 - 0.15 * (step + 1)), (4.4 + 0.5 * step, 1.2, 0.15), pale)
    for x in (-1.9, -0.65, 0.65, 1.9):
        round_((x, 0.75, 1.75), (0.19, 1.3, 0.19), pale, cylinder=True)
    box((0, 0.8, 3.05), (4.6, 0.9, 0.4), pale)

    statue = paint(7, 130, (0.72, 0.76, 0.72))
    box((-2.9, -3.2, 0), (1.3, 1.3, 1.1), pale, 0.3)
    for place, radii in (
        ((-2.9, -3.2, 1.75), (0.38, 0.32, 0.75)),
        ((-2.9, -3.25, 2.7), (0.24, 0.25, 0.3)),
        ((-3.25, -3.35, 2.0), (0.16, 0.4, 0.16)),
        ((-2.55, -3.3, 2.05), (0.15, 0.18, 0.5)),
    ):
        round_(place, radii, statue)

    crate = paint(6, 120, wood)
    for place, side, turn in (
        ((3.1, -2.6, 0), 1.0, 0.4),
        ((4.2, -2.0, 0), 0.8, -0.2),
        ((3.3, -2.5, 1.0), 0.6, 1.0),
        ((-6.2, -1.5, 0), 0.9, 0.7),
    ):
        box(place, (side, side, side), crate, turn)
    round_((1.2, -4.4, 0.35), (0.85, 0.35, 0.85), pale, cylinder=True)
    round_((1.2, -4.4, 0.62), (0.84, 0.84, 0.12), paint(7, 100, (0.6, 0.7, 0.76)))

    crown, bark = paint(5, 90, leaf), paint(6, 100, wood)
    rng = np.random.default_rng(seed)
    for x, y in ((-5.2, -2.6), (8.2, -0.8), (-12.5, -0.5)):
        round_((x, y, 0.9), (0.16, 1.0, 0.16), bark, cylinder=True)
        for _ in range(5):
            dx, dy, dz = rng.normal(0, 0.38, 3).tolist()
            rx, ry, rz = rng.uniform(0.5, 0.95, 3).tolist()
            round_((x + dx, y + dy, 2.6 + dz), (rx, ry, rz), crown)
    return build.build(), paints
