"""COLMAP's own SIFT through pycolmap on a folder of photos, compared with true cameras or a run.

    python benchmarks/sift_baseline.py IMAGES --truth MODEL [--known INTRINSICS] [--max-size 1024]
                                       [--out FOLDER] [--lens]
    python benchmarks/sift_baseline.py --like RUN [--map-again]

Prints one row of a Markdown table and one line of JSON; `--out` keeps the model in FOLDER/model.
With `--lens` the model is adjusted once more as OPENCV, with its principal point. Everything but
the image size, the pairs, the cameras and the seed is COLMAP's default: 8,192 features, exhaustive
matching, incremental mapping. Peak memory includes this package's imports, some 250 MiB.

`--like` takes the photos, the size, the pairs and the grouping of the cameras of a finished
`edm-hloc reconstruct` in the folder RUN, and prints a table of both: models, CPU and wall-clock
time by step, and where photos have GPS in their EXIF data, the median distance of the cameras from
it after a similarity. `--map-again` maps the run's database once more in a process of its own, so
that the time of both mappings is of one job.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np  # before pycolmap, see edm_hloc.base.colmap
import pycolmap
from reconstruct_rows import heading

from edm_hloc.base.colmap import (
    ModelStatistics,
    centres_of,
    posed_images,
    quiet_colmap,
    read_model,
)
from edm_hloc.base.process import peak_memory_mib
from edm_hloc.evaluation.models import compare
from edm_hloc.images.intrinsics import load_intrinsics
from edm_hloc.mapping.mappers import map_database
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.pairs.files import read_pairs
from edm_hloc.pairs.rules import Pair, names_in

COLUMNS = (
    "scene", "intrinsics", "registered", "points", "track", "reproj. px",
    "rotation ° (max)", "position % (max)", "seconds", "peak MiB",
)  # fmt: skip
CAMERAS = {
    "auto": pycolmap.CameraMode.AUTO,
    "single": pycolmap.CameraMode.SINGLE,
    "per-folder": pycolmap.CameraMode.PER_FOLDER,
    "per-image": pycolmap.CameraMode.PER_IMAGE,
}


@dataclass(frozen=True)
class Settings:
    """What is not COLMAP's default.

    Attributes:
        images: folder of the photos.
        max_size: longest side of the photos.
        cameras: which photos share a camera; with `known`, none.
        known: known intrinsics.
        pairs: to match; None for all.
        threads, seed: of all steps.
    """

    images: Path
    max_size: int = 1024
    cameras: str = "single"
    known: Path | None = None
    pairs: Sequence[Pair] | None = None
    threads: int = -1
    seed: int = 0


@dataclass
class Clock:
    """CPU and wall-clock seconds of steps, by name."""

    cpu: dict[str, float] = field(default_factory=dict)
    wall: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        cpu, wall = time.process_time(), time.monotonic()
        yield
        self.cpu[name] = time.process_time() - cpu
        self.wall[name] = time.monotonic() - wall


def run(settings: Settings, out: Path, clock: Clock) -> Path:
    """Reconstructs into `out`; gives the folder of the largest model."""
    database, known = out / "database.db", settings.known
    extraction = pycolmap.FeatureExtractionOptions()
    extraction.max_image_size = settings.max_size
    extraction.num_threads = settings.threads
    mode = pycolmap.CameraMode.PER_IMAGE if known else CAMERAS[settings.cameras]
    with clock.step("extraction"):
        pycolmap.extract_features(
            database,
            settings.images,
            image_names=names_in(settings.pairs or ()),
            camera_mode=mode,
            extraction_options=extraction,
            device=pycolmap.Device.cpu,
        )
    mapping = pycolmap.IncrementalPipelineOptions()
    mapping.num_threads = settings.threads
    mapping.random_seed = settings.seed
    if known:
        db = pycolmap.Database.open(database)
        photos = db.read_all_images()
        cameras = load_intrinsics(known, [photo.name for photo in photos])
        for photo in photos:
            camera = pycolmap.Camera(cameras[photo.name].todict())
            camera.camera_id, camera.has_prior_focal_length = photo.camera_id, True
            db.update_camera(camera)
        db.close()
        mapping.ba_refine_focal_length = mapping.ba_refine_extra_params = False
        mapping.mapper.abs_pose_refine_focal_length = False
        mapping.mapper.abs_pose_refine_extra_params = False
    with clock.step("matching"):
        _match(database, settings)
    with clock.step("mapping"):
        models = pycolmap.incremental_mapping(database, settings.images, out, mapping)
    if not models:
        raise SystemExit(f"SIFT found no model of {settings.images}.")
    largest = max(models, key=lambda i: models[i].num_reg_images())
    return out / str(largest)


def adjust_lens(model: Path) -> None:
    """Adjusts a model once more, as OPENCV with its principal points, and rewrites it."""
    whole = pycolmap.Reconstruction(model)
    for camera in whole.cameras.values():
        f, cx, cy, k = camera.params  # SIMPLE_RADIAL, COLMAP's default
        camera.model = pycolmap.CameraModelId.OPENCV
        camera.params = [f, f, cx, cy, k, 0.0, 0.0, 0.0]
    options = pycolmap.BundleAdjustmentOptions()
    options.refine_principal_point, options.print_summary = True, False
    pycolmap.bundle_adjustment(whole, options)
    whole.update_point_3d_errors()
    whole.write(model)


def _match(database: Path, settings: Settings) -> None:
    """Matches and verifies the pairs."""
    matching = pycolmap.FeatureMatchingOptions()
    matching.num_threads = settings.threads
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = settings.seed
    if settings.pairs is None:
        pycolmap.match_exhaustive(
            database,
            matching_options=matching,
            verification_options=verification,
            device=pycolmap.Device.cpu,
        )
        return
    pairing = pycolmap.ImportedPairingOptions()
    pairing.match_list_path = database.with_name("pairs.txt")
    # COLMAP's list has spaces between names: the photos get names without any
    db = pycolmap.Database.open(database)
    images = {image.name: image for image in db.read_all_images()}
    plain = {name: f"{number:06}" for number, name in enumerate(images)}
    _rename(db, images.values(), plain)
    lines = (f"{plain[a]} {plain[b]}\n" for a, b in settings.pairs if {a, b} <= plain.keys())
    pairing.match_list_path.write_text("".join(lines))
    db.close()
    pycolmap.match_image_pairs(
        database,
        pairing_options=pairing,
        matching_options=matching,
        verification_options=verification,
        device=pycolmap.Device.cpu,
    )
    db = pycolmap.Database.open(database)
    _rename(db, db.read_all_images(), {short: name for name, short in plain.items()})
    db.close()


def _rename(db: pycolmap.Database, images: Any, names: Mapping[str, str]) -> None:
    for image in images:
        image.name = names[image.name]
        db.update_image(image)


# ---- beside a run of edm-hloc


def places(database: Path) -> dict[str, np.ndarray]:
    """By name, metres east, north and up, of the photos with GPS in their EXIF data."""
    db = pycolmap.Database.open(database)
    names = {image.image_id: image.name for image in db.read_all_images()}
    priors = [prior for prior in db.read_all_pose_priors() if prior.has_position()]
    db.close()
    if not priors:
        return {}
    globe = np.array([prior.position for prior in priors])
    metres = np.asarray(pycolmap.GPSTransform().ellipsoid_to_enu(globe, *globe.mean(axis=0)))
    return {
        names[prior.corr_data_id.id]: place for prior, place in zip(priors, metres, strict=True)
    }


def distance_from(places: Mapping[str, np.ndarray], model: Path) -> float | None:
    """Median distance in metres of the cameras from the places, after a similarity."""
    posed = posed_images(read_model(model))
    names = sorted(posed.keys() & places.keys())
    if len(names) < 4:
        return None
    centres = centres_of(posed[name] for name in names)
    target = np.array([places[name] for name in names])
    similarity = pycolmap.estimate_sim3d(centres, target)
    if similarity is None:
        return None
    moved = centres @ (similarity.scale * similarity.rotation.matrix()).T + similarity.translation
    return float(np.median(np.linalg.norm(moved - target, axis=1)))


def map_again(run: Path, images: Path, options: MappingOptions) -> dict[str, float]:
    """Maps the database of a run once more, in this process; its time and peak memory."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, clock.step("mapping"):
        map_database(run / "database.db", images, Path(folder) / "model", options)
    return {**clock.cpu, "wall": clock.wall["mapping"], "peak": peak_memory_mib() or math.nan}


def beside(folder: Path, threads: int, again: bool, keep: Path | None) -> None:
    """Prints a table of a run and of SIFT on the same photos and pairs."""
    record = json.loads((folder / "run.json").read_text())
    chosen = record["settings"]
    images = Path(chosen["images"])
    if not images.is_dir():
        sys.exit(f"sift_baseline.py: no folder {images}: start in the folder where the run was.")
    settings = Settings(
        images=images,
        max_size=chosen["matcher"]["resize_max"],
        cameras=chosen["cameras"]["mode"],
        pairs=read_pairs(folder / "pairs.txt"),
        threads=threads,
    )
    ours: dict[str, float] = {}
    if again:
        options = MappingOptions(**{**chosen["mapping"], "threads": threads})
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            ours = process.submit(map_again, folder, images, options).result()
    clock = Clock()
    with tempfile.TemporaryDirectory() as temporary, quiet_colmap():
        out = Path(temporary)
        model = run(settings, out, clock)
        gps = places(out / "database.db")
        rows = [("edm_hloc", folder / "model"), ("COLMAP SIFT", model)]
        print(f"{len(settings.pairs or ())} pairs, photos of {settings.max_size} px")
        print("| | registered | points | track | reproj. px | m from GPS, median |")
        print("|" + "---|" * 6)
        for name, path in rows:
            statistics, apart = ModelStatistics.of(read_model(path)), distance_from(gps, path)
            print(
                f"| {name} | {statistics.registered} | {statistics.points:,} "
                f"| {statistics.mean_track_length:.2f} | {statistics.mean_reprojection_error:.2f} "
                f"| {'–' if apart is None else f'{apart:.3f}'} |"
            )
        if keep:
            shutil.copytree(model, keep / "model", dirs_exist_ok=True)
    print(f"\n{heading(('SIFT', *clock.cpu, 'all'))}")
    for name, seconds in (("CPU s", clock.cpu), ("wall s", clock.wall)):
        cells = [f"{value:.0f}" for value in (*seconds.values(), sum(seconds.values()))]
        print(f"| {name} | " + " | ".join(cells) + " |")
    peak = peak_memory_mib() or math.nan
    print(f"\nSIFT's peak memory {peak:,.0f} MiB, on {os.cpu_count()} cores")
    if ours:
        print(
            f"Mapping of {folder} again: {ours['mapping']:.0f} s of CPU, {ours['wall']:.0f} s, "
            f"peak {ours['peak']:,.0f} MiB: "
            f"{ours['mapping'] / clock.cpu['mapping']:.2f} × SIFT's CPU"
        )
    print(json.dumps({"sift": {"cpu": clock.cpu, "wall": clock.wall}, "edm_hloc": ours}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("images", type=Path, nargs="?")
    parser.add_argument("--like", type=Path, help="folder of a run of edm-hloc reconstruct")
    parser.add_argument("--map-again", action="store_true", help="measure that run's mapping too")
    parser.add_argument("--truth", type=Path, help="COLMAP model with the true cameras")
    parser.add_argument("--known", type=Path, help="known intrinsics, as for edm-hloc reconstruct")
    parser.add_argument("--max-size", type=int, default=1024, help="longest side of the photos")
    parser.add_argument("--out", type=Path, help="keep the model in this folder")
    parser.add_argument("--lens", action="store_true", help="adjust it as OPENCV in the end")
    parser.add_argument("--threads", type=int, default=-1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if (args.images is None) == (args.like is None):
        parser.error("give either IMAGES or --like RUN")
    if args.lens and (args.like or args.known):
        parser.error("--lens is for IMAGES without --known")
    if args.like:
        beside(args.like, args.threads, args.map_again, args.out)
        return

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, quiet_colmap():
        out = Path(folder)
        settings = Settings(
            args.images, args.max_size, known=args.known, threads=args.threads, seed=args.seed
        )
        model = run(settings, out, clock)
        if args.lens:
            with clock.step("lens"):
                adjust_lens(model)
        seconds = sum(clock.wall.values())
        peak = peak_memory_mib()
        statistics = ModelStatistics.of(pycolmap.Reconstruction(model))
        if args.out:
            shutil.copytree(model, args.out / "model", dirs_exist_ok=True)
        result = {
            "images": str(args.images),
            "known": bool(args.known),
            "seconds": round(seconds, 1),
        }
        result |= {"peak_memory_mib": peak, **asdict(statistics)}
        rotation = position = "–"
        registered = str(statistics.registered)
        if args.truth:
            errors = compare(model, args.truth, args.images)
            result |= asdict(errors)
            registered = f"{errors.registered} of {errors.images}"
            rotation = f"{errors.rotation_median:.3f} ({errors.rotation_max:.3f})"
            position = f"{errors.position_median:.3f} ({errors.position_max:.3f})"
    row = (
        args.images.resolve().parent.name, "known" if args.known else "unknown", registered,
        f"{statistics.points:,}", f"{statistics.mean_track_length:.2f}",
        f"{statistics.mean_reprojection_error:.2f}", rotation, position,
        f"{seconds:.0f}", f"{peak}",
    )  # fmt: skip
    print(heading(COLUMNS))
    print("| " + " | ".join(row) + " |")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
