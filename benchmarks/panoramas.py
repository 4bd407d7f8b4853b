"""Renders panoramas of a room, and compares models of their views with and without their rig.

    python benchmarks/panoramas.py OUT [--panoramas 12] [--width 2048] [--seed 0]

Prints the errors of the model of `edm-hloc views` and `reconstruct`, and of the same after
`edm-hloc refine-model --rig`. OUT/panoramas holds the panoramas, OUT/truth the cameras of the
views as a COLMAP model, OUT/views, OUT/model and OUT/rigid what the commands made.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from edm_hloc import cli
from edm_hloc.evaluation.models import compare
from edm_hloc.images.find import find_images
from edm_hloc.images.panoramas import RIG, cut_panoramas, view_rotation
from edm_hloc.synthetic import layouts
from edm_hloc.synthetic.cameras import look_at
from edm_hloc.synthetic.photo_truth import PhotoTruth, write_photo, write_true_model
from edm_hloc.synthetic.random_numbers import Random
from edm_hloc.synthetic.room_photos import RoomPhotographer

FACES = (  # cam_from_rig of the views of which a panorama is made
    *(view_rotation(yaw) for yaw in (0.0, 90.0, 180.0, 270.0)),
    np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),  # up
    np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),  # down
)


def render_panoramas(folder: Path, number: int, width: int, seed: int) -> list[np.ndarray]:
    """Writes panoramas of a room to `folder/00.jpg`, …

    Args:
        folder: made if necessary.
        number: of panoramas.
        width: of a panorama, pixels; it is half as high.
        seed: of everything random.

    Returns:
        The poses of their rigs, (4, 4) rig_from_world.
    """
    rng = Random(seed)
    room = layouts.room(rng, 1)
    face = round(width / 3)  # a little finer than the panorama
    photographer = RoomPhotographer.of(room.shapes, seed, rng, (face, face))
    height = width // 2
    longitude = ((np.arange(width) + 0.5) / width - 0.5) * 2 * np.pi
    latitude = (0.5 - (np.arange(height) + 0.5) / height)[:, None] * np.pi
    rays = np.stack(
        np.broadcast_arrays(
            np.cos(latitude) * np.sin(longitude),
            -np.sin(latitude),
            np.cos(latitude) * np.cos(longitude),
        ),
        axis=-1,
    )
    poses = []
    for n in range(number):
        share = rng.uniform(3) * torch.tensor([0.6, 0.6, 0.3]) + torch.tensor([0.2, 0.2, 0.35])
        place = room.camera_low[0] + share * (room.camera_high[0] - room.camera_low[0])
        yaw = float(rng.uniform(1, high=2 * np.pi))
        ahead = place + torch.tensor([np.cos(yaw), np.sin(yaw), 0.0], dtype=torch.float32)
        rig = look_at(place, ahead, 0.05 * rng.normal(1)[0])
        panorama = np.zeros((height, width), np.uint8)
        nearest = np.full((height, width), -1.0)
        for R in FACES:
            T = torch.eye(4)
            T[:3, :3] = torch.from_numpy(R).float()
            pixels, _ = photographer.photo("", T @ rig, face / 2, (face, face), torch.eye(4))
            seen = rays @ R.T
            front = seen[..., 2] > nearest
            nearest[front] = seen[..., 2][front]
            with np.errstate(divide="ignore"):
                where = (face - 1) / 2 + face / 2 * seen[..., :2] / seen[..., 2:]
            x, y = np.moveaxis(where.astype(np.float32), -1, 0)
            values = cv2.remap(pixels, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
            panorama[front] = values[front]
        write_photo(folder / f"{n:02d}.jpg", panorama)
        poses.append(rig.double().numpy())
    return poses


def write_truth(out: Path, poses: list[np.ndarray], views: Path, side: int) -> None:
    """Writes the true cameras of the views as a COLMAP model."""
    photos = []
    for name in find_images(views):
        folder, _, file = name.partition("/")
        T = np.eye(4)
        T[:3, :3] = view_rotation(float(folder.removeprefix("yaw_")))
        K = np.array([[side / 2, 0, (side - 1) / 2], [0, side / 2, (side - 1) / 2], [0, 0, 1]])
        pose = T @ poses[int(Path(file).stem)]
        photos.append(PhotoTruth(name, K, pose, (side, side), np.empty(0)))
    write_true_model(out, photos)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--panoramas", type=int, default=12)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder, views = args.out / "panoramas", args.out / "views"
    poses = render_panoramas(folder, args.panoramas, args.width, args.seed)
    cut = cut_panoramas(folder, find_images(folder), views)
    write_truth(args.out / "truth", poses, views, cut.side)
    out, rigid = args.out / "model", args.out / "rigid"
    reconstruct = ["reconstruct", str(views), str(out), "--known", cut.intrinsics]
    refine = ["refine-model", str(out / "model"), str(views), str(rigid), "--keep-intrinsics"]
    for command in (reconstruct, [*refine, "--rig", str(views / RIG)]):
        if cli.main(command):
            raise SystemExit(1)
    for title, model in (("photos alone", out / "model"), ("in rigs", rigid)):
        print(f"\n{title}:\n{compare(model, args.out / 'truth')}")


if __name__ == "__main__":
    main()
