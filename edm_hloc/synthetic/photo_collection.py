"""A folder of photos of one rendered place, with their true cameras."""

from __future__ import annotations

from pathlib import Path

from edm_hloc.synthetic.cameras import Cameras
from edm_hloc.synthetic.photo_truth import PhotoTruth, write_depth, write_photo, write_true_model
from edm_hloc.synthetic.random_numbers import Random
from edm_hloc.synthetic.textures import TextureBank
from edm_hloc.synthetic.town_square import TownSquare, arc_of_cameras


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
        out_dir: made if necessary.
        views: number of photos.
        size: (width, height) of the photos, in pixels.
        seed: of the trees, the textures, the cameras and the noise.
        textures: of the surfaces; None: façades and dead leaves painted by the package.
        depth_maps: write them.

    Returns:
        The folder of the photos.
    """
    width, height = size
    square = TownSquare.build(seed, textures)
    cameras = arc_of_cameras(views, height, width, Random(seed))
    images_dir = out_dir / "images"
    rng = Random(seed + 1)
    photos = []
    for number in range(views):
        one = Cameras(cameras.K[:, number, None], cameras.cam_from_world[:, number, None])
        pixels, depth = square.photograph(one, size, rng)
        photo = PhotoTruth.of(f"view_{number:02d}.jpg", one, size, depth)
        write_photo(images_dir / photo.name, pixels)
        if depth_maps:
            write_depth(out_dir, photo)
        photos.append(photo)
    write_true_model(out_dir / "truth", photos)
    return images_dir
