"""`edm-hloc export-model`: a model in another program's form, with undistorted photos if asked."""

from __future__ import annotations

import argparse
from pathlib import Path
from shlex import quote

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.cli import options

TARGETS = ("gsplat", "nerfstudio", "opensplat", "metashape", "kapture", "openmvs", "rerun")
"""The names of `edm_hloc.interop.targets.registry.TARGETS`, whose import takes seconds."""


def register(command: options.AddCommand) -> None:
    sub = command("export-model", _export, "write a COLMAP model in another program's format")
    sub.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help="COLMAP model; of a folder with several, or of a run's, the largest is taken",
    )
    sub.add_argument(
        "out",
        type=Path,
        metavar="OUT",
        help="points.ply, transforms.json (nerfstudio), or a folder for COLMAP's own files or for "
        "those of --for",
    )
    add_target(sub)
    sub.add_argument("--text", action="store_true", help="COLMAP's text format instead of binary")
    sub.add_argument(
        "--images",
        type=Path,
        help="folder of the photos: for --for, by default that of the run which made the model; "
        "for the paths in transforms.json, by default images/",
    )
    sub.add_argument(
        "--masks",
        type=Path,
        help="with --for: folder with an image NAME.png for each photo NAME, black where it is "
        "masked; undistorted too",
    )


def add_target(sub: argparse.ArgumentParser) -> None:
    """Add --for and --copies, which `export_for` reads."""
    group = sub.add_argument_group("for another program")
    group.add_argument(
        "--for",
        dest="target",
        choices=TARGETS,
        help="write undistorted photos, and the model without distortion in this program's layout",
    )
    group.add_argument(
        "--copies",
        type=options.between(int, 2, 33),
        nargs="+",
        default=[],
        metavar="N",
        help="with --for: also copies of the photos reduced by N, in images_N, such as 2 4 8",
    )


def check_target(args: argparse.Namespace) -> None:
    """Raise EdmHlocError if --copies is given without --for."""
    if args.copies and args.target is None:
        raise EdmHlocError("--copies goes with undistorted photos: add --for.")


def export_for(args: argparse.Namespace, model: Path, images: Path, out: Path) -> None:
    """Write the files that --for asks for, and print what was made and how to go on.

    Args:
        args: with `target`, `copies` and `masks`.
        model: folder of the model.
        images: folder of its photos.
        out: folder to write.

    Raises:
        EdmHlocError: see `interop.targets.registry.export_for`.
    """
    from edm_hloc.base.colmap import posed_images
    from edm_hloc.interop.targets import registry
    from edm_hloc.interop.targets.undistorted import PhotosOfModel

    source = PhotosOfModel(images, args.masks, tuple(sorted(set(args.copies))))
    written = registry.export_for(args.target, model, source, out)
    folder = f"{out / written.photos}"
    parts = [f"{len(posed_images(written.model)):,} undistorted photos in {folder}"]
    if written.masks is not None:
        parts.append(f"masks in {out / written.masks}")
    parts += [f"1/{factor} in {folder}_{factor}" for factor in written.copies]
    print(f"Exported    {args.target}: {', '.join(parts)}")
    print(f"Next        {registry.TARGETS[args.target].next_for(out)}")


def _export(args: argparse.Namespace) -> None:
    from edm_hloc.base.files import refuse_foreign
    from edm_hloc.interop import exports
    from edm_hloc.interop.targets.registry import largest_model, masks_of, photos_of
    from edm_hloc.surface import ply

    model = largest_model(args.model)
    if model != args.model:
        print(f"Model       {model}")
    suffix, written = args.out.suffix.lower(), [args.out]
    if args.target is not None:
        if args.text:
            raise EdmHlocError("--text is for COLMAP's own files: leave it out with --for.")
        images = args.images or photos_of(model)
        if args.masks is None and (masks := masks_of(model)) is not None:
            how = f"--masks {quote(str(masks))}"
            print(f"Masks       of the run are left out; to undistort them: {how}")
        export_for(args, model, images, args.out)
        return
    check_target(args)
    if args.masks is not None:
        raise EdmHlocError("--masks goes with undistorted photos: add --for.")
    if suffix == ".ply":
        refuse_foreign(args.out, ply.MARK)
        exports.export_ply(model, args.out)
    elif suffix == ".json":
        written = exports.export_nerfstudio(model, args.out, args.images)
    elif suffix and not args.out.is_dir():
        raise EdmHlocError(
            f"Cannot export to {args.out.suffix} files: OUT must be a .ply or .json file "
            "or a folder."
        )
    elif args.text:
        exports.export_text(model, args.out)
    else:
        exports.export_binary(model, args.out)
    print(f"Written     {' and '.join(map(str, written))}")
