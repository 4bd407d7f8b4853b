"""`edm-hloc mesh`: the surface of what the photos of a run show, as a file that viewers open."""

from __future__ import annotations

import argparse
from pathlib import Path

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.cli import options


def register(command: options.AddCommand) -> None:
    sub = command("mesh", _mesh, "make a textured mesh of what the photos of a run show")
    sub.add_argument("model", type=Path, metavar="OUT", help="folder of a run, or of a model in it")
    sub.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="the mesh: .glb (glTF, upright, the photos as its texture, for viewers), .html (a "
        "page that shows this) or .ply (in the frame of the model, more triangles, a colour for "
        "each vertex)",
    )
    sub.add_argument(
        "--points",
        action="store_true",
        help="write the points that the mesh is made of, with normals and colours (.ply)",
    )
    sub.add_argument("--images", type=Path, help="folder of the photos, by default that of the run")


def add_mesh(sub: argparse.ArgumentParser) -> None:
    """Add --mesh, which `check_mesh` reads."""
    sub.add_argument(
        "--mesh",
        type=Path,
        metavar="FILE",
        help="also make a mesh: .glb (glTF with textures), .html (a page that shows it) or .ply; "
        "`edm-hloc mesh` makes it later",
    )


def check_mesh(args: argparse.Namespace) -> None:
    """Raise EdmHlocError if the file of --mesh is not a mesh's."""
    if args.mesh is not None:
        from edm_hloc.report.meshes import check_mesh_file

        check_mesh_file(args.mesh)


def _mesh(args: argparse.Namespace) -> None:
    from edm_hloc.interop.targets.registry import largest_model, photos_of
    from edm_hloc.report.meshes import check_mesh_file

    if args.points and args.file.suffix.lower() != ".ply":
        raise EdmHlocError(f"Points are written as PLY, and {args.file} does not end with .ply.")
    model = largest_model(args.model)
    images = args.images or photos_of(model)
    check_mesh_file(args.file)
    if args.points:
        _write_points(model, images, args.file)
    else:
        write(model, images, args.file)


def write(model: Path, images: Path, file: Path) -> None:
    """Make the mesh of a model, write it, and print what was made.

    Args:
        model: folder of the model of a run.
        images: folder of its photos.
        file: the mesh.

    Raises:
        EdmHlocError: see `report.meshes.write_mesh`.
    """
    from edm_hloc.report.meshes import write_mesh

    made = write_mesh(model, images, file)
    print(
        f"Mesh        {made.triangles:,} triangles of {made.points:,} points, from "
        f"{made.matches:,} matches"
    )
    print(f"Written     {file} ({file.stat().st_size / 1e6:.1f} MB)")


def _write_points(model: Path, images: Path, file: Path) -> None:
    from edm_hloc.base.files import write_whole
    from edm_hloc.pipelines.mesh import Surfaces

    found = Surfaces.of_run(model, images)
    write_whole(file, found.points_ply())
    print(f"Points      {len(found.cloud):,} with normals, from {found.matches:,} matches")
    print(f"Written     {file} ({file.stat().st_size / 1e6:.1f} MB)")
