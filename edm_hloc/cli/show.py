"""`edm-hloc show`: pictures of a model."""

from __future__ import annotations

import argparse
from pathlib import Path

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.cli import options

_MAX_PIXELS = 10_000_000  # of a picture


def register(command: options.AddCommand) -> None:
    sub = command("show", _show, "draw a COLMAP model into four pictures, without a display")
    sub.add_argument("model", type=Path, metavar="MODEL", help="COLMAP model")
    sub.add_argument("--out", type=Path, default=Path("views"), help="folder of the pictures")
    sub.add_argument(
        "--images",
        type=Path,
        help="folder of its photos, whose EXIF data say which way is up (default: that of the run "
        "in whose folder the model is)",
    )
    sub.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(1600, 1200),
        metavar=("W", "H"),
        help="of a picture, px",
    )
    sub.add_argument("--no-cameras", action="store_true", help="draw points only")


def _show(args: argparse.Namespace) -> None:
    from edm_hloc.base.colmap import read_model
    from edm_hloc.images.find import no_folder
    from edm_hloc.images.pictures import write_picture
    from edm_hloc.mapping.georeference import is_on_earth
    from edm_hloc.report.collect import photos_of_model
    from edm_hloc.report.model_pictures import VIEWPOINTS, draw_model
    from edm_hloc.report.scene import Points, build_scene, camera_views, upright_views

    if min(args.size) < 16 or max(args.size) > 8192:
        raise EdmHlocError("--size must be from 16 to 8192 px.")
    if args.size[0] * args.size[1] > _MAX_PIXELS:
        raise EdmHlocError(
            f"--size must be at most {_MAX_PIXELS:,} pixels in all, such as 3840 2160: drawing "
            "takes 400 bytes of memory a pixel."
        )
    if args.images is not None and not args.images.is_dir():
        raise EdmHlocError(no_folder(args.images))
    model = read_model(args.model)
    points = Points.of(model)
    photos = args.images or photos_of_model(args.model)
    gone = photos is not None and not photos.is_dir()
    views = camera_views(model) if photos is None or gone else upright_views(model, photos)
    if not len(points) and not views:
        raise EdmHlocError(f"The model in {args.model} has neither points nor posed images.")
    on_earth = is_on_earth(args.model)
    scene = build_scene(points, views, on_earth=on_earth)
    for viewpoint in VIEWPOINTS:
        picture = draw_model(scene, viewpoint, tuple(args.size), cameras=not args.no_cameras)
        write_picture(args.out / f"{viewpoint}.png", picture)
    print(f"Model       {len(views):,} cameras, {len(points):,} points")
    if on_earth:
        print("Up          as on Earth, where the run has placed the model")
    elif gone:
        print(f"Up          as the photos are stored: they are not in {photos} (--images)")
    if scene.hidden:
        print(f"Left out    {scene.hidden:,} points far outside the model")
    print(f"Written     {', '.join(f'{v}.png' for v in VIEWPOINTS)} in {args.out}")
