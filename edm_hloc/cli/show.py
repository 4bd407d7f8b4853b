"""`edm-hloc show` draws a model, `export-model` writes it in other programs' formats."""

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
        "--size",
        type=int,
        nargs=2,
        default=(1600, 1200),
        metavar=("W", "H"),
        help="of a picture, px",
    )
    sub.add_argument("--no-cameras", action="store_true", help="draw points only")

    sub = command("export-model", _export, "write a COLMAP model in another program's format")
    sub.add_argument("model", type=Path, metavar="MODEL", help="COLMAP model")
    sub.add_argument(
        "out",
        type=Path,
        metavar="OUT",
        help="points.ply, transforms.json (nerfstudio), or a folder for COLMAP's own files",
    )
    sub.add_argument("--text", action="store_true", help="COLMAP's text format instead of binary")
    sub.add_argument(
        "--images",
        type=Path,
        help="folder of the photos for the paths in transforms.json; default: images/",
    )


def _show(args: argparse.Namespace) -> None:
    from edm_hloc.base.colmap import read_model
    from edm_hloc.images.pictures import write_picture
    from edm_hloc.report.model_pictures import VIEWPOINTS, draw_model
    from edm_hloc.report.scene import Points, build_scene, camera_views

    if min(args.size) < 16 or max(args.size) > 8192:
        raise EdmHlocError("--size must be from 16 to 8192 px.")
    if args.size[0] * args.size[1] > _MAX_PIXELS:
        raise EdmHlocError(
            f"--size must be at most {_MAX_PIXELS:,} pixels in all, such as 3840 2160: drawing "
            "takes 400 bytes of memory a pixel."
        )
    model = read_model(args.model)
    points = Points.of(model)
    views = camera_views(model)
    if not len(points) and not views:
        raise EdmHlocError(f"The model in {args.model} has neither points nor posed images.")
    scene = build_scene(points, views)
    for viewpoint in VIEWPOINTS:
        picture = draw_model(scene, viewpoint, tuple(args.size), cameras=not args.no_cameras)
        write_picture(args.out / f"{viewpoint}.png", picture)
    print(f"Model       {len(views):,} cameras, {len(points):,} points")
    if scene.hidden:
        print(f"Left out    {scene.hidden:,} points far outside the model")
    print(f"Written     {', '.join(f'{v}.png' for v in VIEWPOINTS)} in {args.out}")


def _export(args: argparse.Namespace) -> None:
    from edm_hloc.interop import exports

    suffix = args.out.suffix.lower()
    if suffix == ".ply":
        exports.export_ply(args.model, args.out)
    elif suffix == ".json":
        exports.export_nerfstudio(args.model, args.out, args.images)
    elif suffix and not args.out.is_dir():
        raise EdmHlocError(
            f"Cannot export to {args.out.suffix} files: OUT must be a .ply or .json file "
            "or a folder."
        )
    elif args.text:
        exports.export_text(args.model, args.out)
    else:
        exports.export_binary(args.model, args.out)
    print(f"Written     {args.out}")
