"""`edm-hloc georeference`: a model in metres on Earth, by GPS, positions or control points."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.log import first_few
from edm_hloc.cli import options

if TYPE_CHECKING:
    import pycolmap

    from edm_hloc.mapping.georeference import Georeference


def register(command: options.AddCommand) -> None:
    sub = command("georeference", _georeference, "bring a COLMAP model into metres on Earth")
    sub.add_argument("model", type=Path, metavar="MODEL", help="COLMAP model, or a run's folder")
    sub.add_argument(
        "out", type=Path, metavar="OUT", help="folder for the model, its record and the maps"
    )
    sub.add_argument(
        "--images",
        type=Path,
        help="folder of the photos whose GPS is taken; by default that of the run",
    )
    either = sub.add_mutually_exclusive_group()
    either.add_argument(
        "--positions",
        type=Path,
        metavar="TABLE",
        help="instead of GPS: a table with a line name,latitude,longitude,altitude above, or "
        "name,x,y,z with --crs",
    )
    either.add_argument(
        "--control-points",
        type=Path,
        metavar="LIST",
        help="instead of GPS: ground control points and their pixels, as OpenDroneMap's gcp_list",
    )
    sub.add_argument(
        "--crs",
        metavar="EPSG:…",
        help="reference system of x, y, z in TABLE, and of the cameras in OUT/cameras.csv",
    )


def add_positions(sub: argparse.ArgumentParser) -> None:
    """Add --positions of `reconstruct`."""
    sub.add_argument(
        "--positions",
        default="gps",
        metavar="HOW",
        help="where the photos are on Earth, for a model in metres: gps (of their EXIF data, if "
        "enough have it), none (the model keeps the frame that it has), or a table with a line "
        "name,latitude,longitude,altitude above",
    )
    sub.add_argument(
        "--position-priors",
        nargs="?",
        type=options.between(float, 1e-3),
        const=3.0,
        metavar="METRES",
        help="keep the cameras near their positions while they are mapped, which straightens long "
        "chains of weakly connected photos; METRES is the standard deviation of positions that "
        "tell none (3 if left out)",
    )


def print_place(placed: Georeference) -> None:
    """Print how a model and its parts lie on Earth, or why they do not."""
    if not placed.used:
        print(f"Earth       the model keeps its own frame, without scale: {placed.why}")
    else:
        assert placed.origin is not None
        latitude, longitude, altitude = placed.origin
        height = f", {altitude:.1f} m" if placed.heights else ""
        print(
            f"Earth       metres east, north and up of {latitude:.6f}°, {longitude:.6f}°{height}; "
            f"{_distances(placed)}"
        )
        if placed.why:
            print(f"            it stays where an earlier run has brought it: {placed.why}")
        _print_wrong(placed)
    without = [number for number, part in placed.parts.items() if not part.positions]
    if without:
        several = "parts" if len(without) > 1 else "part"
        numbers = ", ".join(first_few(without, "", 12))
        print(f"            without positions, in a frame of its own: {several} {numbers}")
    for number, part in placed.parts.items():
        if number in without:
            continue
        if part.used:
            print(f"            part {number}: in the same frame, {_distances(part)}")
            _print_wrong(part)
        else:
            print(f"            part {number} keeps its own frame: {part.why}")
    models = {"": placed, **placed.parts}
    level = [number for number, one in models.items() if one.used and not one.heights]
    if level:
        several = "parts" if len(level) > 1 else "part"
        those = "" if "" in level else f" of {several} {', '.join(first_few(level, '', 12))}"
        print(
            f"            Heights not told: the cameras{those} are taken to be on one level; if "
            "they are not, the model is tilted"
        )


def _distances(placed: Georeference) -> str:
    agree = placed.positions - len(placed.wrong)
    return (
        f"{placed.median:.2f} m (median) and at most {placed.largest:.2f} m from {placed.source}, "
        f"{agree} of {placed.positions} agree"
    )


def _print_wrong(placed: Georeference) -> None:
    if placed.wrong:
        more = f" and {len(placed.wrong) - 3} more" if len(placed.wrong) > 3 else ""
        print(f"            wrong positions, left out: {', '.join(placed.wrong[:3])}{more}")


def _georeference(args: argparse.Namespace) -> None:
    import numpy as np

    from edm_hloc.base.colmap import read_model
    from edm_hloc.base.files import check_kinds, make_folder, write_whole
    from edm_hloc.interop import crs
    from edm_hloc.interop.targets.registry import largest_model
    from edm_hloc.mapping import georeference
    from edm_hloc.mapping.output import check_replaceable, new_model_folder
    from edm_hloc.report.earth import draw_map

    if args.crs is not None:
        crs.from_earth_to(args.crs)  # an error at the start
    folder = largest_model(args.model)
    if args.out.exists() and any(map(args.out.samefile, (folder, folder.absolute().parent))):
        raise EdmHlocError(f"{args.out} holds the model itself: choose another folder.")
    names = ["model", georeference.RECORD, georeference.CAMERAS, "map.svg", "cameras.csv"]
    if args.crs is None:
        names.remove("cameras.csv")
    check_kinds(args.out, names)
    _check_own(args.out, names)
    for name in names:
        options.check_output(args.out / name, args.positions, args.control_points)
    check_replaceable(args.out / "model")
    model = read_model(folder)
    points, fixes, source, least = _positions(args, folder, model)
    found, placed = georeference.locate(points, fixes, source, least)
    if not placed.used:
        raise EdmHlocError(
            f"The model in {folder} cannot be brought onto the Earth by {source}: {placed.why}."
        )
    make_folder(args.out)
    model.transform(found)
    georeference.write_placed(placed, {"": model}, args.out)  # first: it marks the folder as ours
    with new_model_folder(args.out / "model") as temporary:
        model.write_binary(temporary)
    centres = georeference.camera_centres(model)
    moved = {name: found * xyz for name, xyz in points.items()}
    write_whole(args.out / "map.svg", draw_map(centres | moved, vars(placed)))
    if args.crs is not None:
        axes = 3 if placed.heights else 2
        rows = [",".join(["name", *"xyz"[:axes]])]
        assert placed.origin is not None
        places = georeference.to_earth(np.array(list(centres.values())), placed.origin)
        for name, place in zip(centres, crs.from_earth_to(args.crs)(places), strict=True):
            quoted = name.replace('"', '""')
            rows.append(f'"{quoted}",' + ",".join(f"{value:.6f}" for value in place[:axes]))
        write_whole(args.out / "cameras.csv", "\n".join(rows) + "\n")
    else:
        _set_table_aside(args.out / "cameras.csv", args.positions)
    print_place(placed)
    print(f"Written     {', '.join(names)} in {args.out}")


def _check_own(out: Path, names: Iterable[str]) -> None:
    """Raise EdmHlocError if a folder holds one of the names, and no earlier call has made it."""
    from edm_hloc.mapping.georeference import RECORD

    if (out / RECORD).exists() and not (out / "run.json").exists():
        return
    for name in names:
        if os.path.lexists(out / name):
            raise EdmHlocError(
                f"{out / name} is there already and was not made by edm-hloc georeference: choose "
                "another folder, or move it."
            )


def _set_table_aside(table: Path, given: Path | None) -> None:
    """Rename the cameras of an earlier call, which are those of another model or other positions.

    Args:
        table: OUT/cameras.csv.
        given: the positions, which stay if they are this file.
    """
    from edm_hloc.pipelines.run_entries import earlier_name

    if table.is_file() and not (given is not None and table.samefile(given)):
        table.rename(table.with_name(earlier_name(table.name, table.parent)))


def _positions(args: argparse.Namespace, folder: Path, model: pycolmap.Reconstruction) -> tuple:
    """Positions in the model and on Earth, where they are from, and how many must agree."""
    from edm_hloc.images import gps
    from edm_hloc.images.find import image_stamps
    from edm_hloc.interop import crs
    from edm_hloc.interop.targets.registry import photos_of
    from edm_hloc.mapping import georeference

    centres = georeference.camera_centres(model)
    if args.control_points is not None:
        fixes, marks = gps.read_control_points(args.control_points, crs.to_earth_from)
        points, failed = georeference.control_points_in(model, marks, args.control_points)
        if failed:
            print(
                f"Left out    control points that fewer than two photos of the model show: "
                f"{', '.join(failed[:5])}"
            )
        return points, fixes, "the control points", 3
    if args.positions is not None:
        transform = None if args.crs is None else crs.to_earth_from(args.crs)
        read = gps.read_positions(args.positions, transform, centres)
        fixes = gps.matching_names(read, list(centres), args.positions)
        return centres, fixes, str(args.positions), 4
    images = args.images or photos_of(folder)
    if not image_stamps(images, centres):
        raise EdmHlocError(
            f"None of the {len(centres)} photos of the model is in {images}, such as "
            f"{next(iter(centres), '')}: give their folder by --images."
        )
    return centres, gps.read_fixes(images, centres), "their GPS", 5
