"""COLMAP's own SIFT through pycolmap on a folder of photos, compared with true cameras.

    python benchmarks/sift_baseline.py IMAGES --truth MODEL [--known INTRINSICS] [--max-size 1024]
                                       [--out FOLDER]

Prints one row of a Markdown table and one line of JSON; `--out` keeps the model in FOLDER/model.
Everything but the image size, the known intrinsics and the seed is COLMAP's default: 8,192
features, exhaustive matching, incremental mapping. Peak memory includes this package's imports,
some 250 MiB.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy  # noqa: F401 (before pycolmap, see edm_hloc.base.colmap)
import pycolmap

from edm_hloc.base.colmap import ModelStatistics, quiet_colmap
from edm_hloc.base.process import peak_memory_mib
from edm_hloc.evaluation.models import compare
from edm_hloc.images.intrinsics import load_intrinsics

COLUMNS = (
    "scene", "intrinsics", "registered", "points", "track", "reproj. px",
    "rotation ° (max)", "position % (max)", "seconds", "peak MiB",
)  # fmt: skip


def run(
    images: Path, out: Path, max_size: int, known: Path | None, threads: int, seed: int
) -> Path:
    """Reconstructs into `out`; gives the folder of the largest model."""
    database = out / "database.db"
    extraction = pycolmap.FeatureExtractionOptions()
    extraction.max_image_size = max_size
    extraction.num_threads = threads
    pycolmap.extract_features(
        database,
        images,
        camera_mode=pycolmap.CameraMode.PER_IMAGE if known else pycolmap.CameraMode.SINGLE,
        extraction_options=extraction,
        device=pycolmap.Device.cpu,
    )
    mapping = pycolmap.IncrementalPipelineOptions()
    mapping.num_threads = threads
    mapping.random_seed = seed
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
    matching = pycolmap.FeatureMatchingOptions()
    matching.num_threads = threads
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = seed
    pycolmap.match_exhaustive(
        database,
        matching_options=matching,
        verification_options=verification,
        device=pycolmap.Device.cpu,
    )
    models = pycolmap.incremental_mapping(database, images, out, mapping)
    if not models:
        raise SystemExit(f"SIFT found no model of {images}.")
    largest = max(models, key=lambda i: models[i].num_reg_images())
    return out / str(largest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("images", type=Path)
    parser.add_argument("--truth", type=Path, help="COLMAP model with the true cameras")
    parser.add_argument("--known", type=Path, help="known intrinsics, as for edm-hloc reconstruct")
    parser.add_argument("--max-size", type=int, default=1024, help="longest side of the photos")
    parser.add_argument("--out", type=Path, help="keep the model in this folder")
    parser.add_argument("--threads", type=int, default=-1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, quiet_colmap():
        out = Path(folder)
        model = run(args.images, out, args.max_size, args.known, args.threads, args.seed)
        seconds = time.monotonic() - start
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
            errors = compare(model, args.truth)
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
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS))
    print("| " + " | ".join(row) + " |")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
