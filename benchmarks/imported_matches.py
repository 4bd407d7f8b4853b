"""Dense matches of another matcher: what import-matches makes of them, and what COLMAP does.

    python benchmarks/imported_matches.py OUT [--views N] [--size W H] [--samples N] [--noise PX]
    python benchmarks/imported_matches.py OUT --images PHOTOS [--truth MODEL] [--known]

Every pair of photos has --samples matches at random points, different ones in each pair, as RoMa
samples its warp; Gaussian noise on both sides, and 5 in 100 are wrong (--wrong). --neighbours N
leaves out the pairs that are further apart in the order of names. Without --images they come from
the exact depth of a rendered scene. With --images they are our own matcher's matches, brought
to random points by the local affine maps of their neighbours. --enlarge N makes the photos N times
as large first: cameras have 12 megapixels and more, in which 5,000 samples hardly ever meet, and a
matcher that works in 1,024 px errs by N times as many pixels (--noise). OUT/matches gets a file for
each pair, which is all that the ways that are compared get:

* as they are into COLMAP: every point of every pair is a keypoint, then COLMAP's verification and
  incremental mapper with their defaults, as scripts do it that write what a dense matcher samples;
* rounded into COLMAP: the same, but points rounded to whole pixels, equal pixels one keypoint;
* import-matches --refine none, and import-matches, both with --tracks none.

Of each the photos registered, points, track length, and with true cameras the errors of the cameras
after alignment.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pycolmap

sys.path.insert(0, str(Path(__file__).parents[1]))

from edm_hloc import cli
from edm_hloc.base.colmap import ModelStatistics, posed_images, quiet_colmap, read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.evaluation.models import compare
from edm_hloc.images.decode import photo_size
from edm_hloc.images.find import find_images
from edm_hloc.images.load import load_image, stored_pixels


class TrueWarp:
    """Where a pixel of a rendered photo is in another one, by depth and cameras."""

    def __init__(self, scene: Path, enlarge: int) -> None:
        self._enlarge = enlarge
        model = read_model(scene / "truth")
        self._views = {}
        for name, image in posed_images(model).items():
            K = model.cameras[image.camera_id].calibration_matrix()
            K[:2, 2] -= 0.5
            depth = np.load((scene / "depth" / name).with_suffix(".npy"))
            self._views[name] = K, image.cam_from_world().matrix(), depth

    def __call__(self, name0: str, name1: str, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        there, seen = self._warped(name0, name1, (points + 0.5) / self._enlarge - 0.5)
        return (there + 0.5) * self._enlarge - 0.5, seen

    def _warped(self, name0: str, name1: str, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        (K0, pose0, depth0), (K1, pose1, depth1) = self._views[name0], self._views[name1]
        points = points.clip(0, np.array(depth0.shape[::-1]) - 1)
        x, y = points.astype(np.float32).T.reshape(2, 8, -1)  # OpenCV takes short rows only
        z = cv2.remap(depth0, x, y, cv2.INTER_LINEAR).ravel()
        jump = cv2.dilate(depth0, np.ones((3, 3))) / np.maximum(
            cv2.erode(depth0, np.ones((3, 3))), 1e-6
        )
        at = np.rint(points).astype(int)
        rays = np.linalg.solve(K0, np.column_stack([points, np.ones(len(points))]).T)
        world = pose0[:, :3].T @ (rays * z - pose0[:, 3:])
        seen = K1 @ (pose1[:, :3] @ world + pose1[:, 3:])
        there = (seen[:2] / np.maximum(seen[2], 1e-6)).T
        height, width = depth1.shape
        inside = (
            (z > 0)
            & (seen[2] > 0)
            & (there >= 0).all(1)
            & (there <= [width - 1, height - 1]).all(1)
        )
        inside &= jump[at[:, 1], at[:, 0]] < 1.05
        u, v = np.rint(np.where(inside[:, None], there, 0)).astype(int).T
        return there, inside & (np.abs(depth1[v, u] / np.maximum(seen[2], 1e-6) - 1) < 0.02)


class MatchedWarp:
    """The same by our matcher's matches, for real photos; only near matches."""

    def __init__(self, images: Path) -> None:
        from edm_hloc.refinement.load import load_matcher

        self._matcher = load_matcher("edm", "photometric")
        self._features = {}
        for name in find_images(images):
            size = self._matcher.info.preprocessing.resize_max
            self._features[name] = self._matcher.encode(load_image(images / name, resize_max=size))
        self._found: dict[tuple[str, str], tuple] = {}

    def __call__(self, name0: str, name1: str, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        from scipy.spatial import cKDTree

        from edm_hloc.refinement.affine import local_affine_maps, transfer

        if (name0, name1) not in self._found:
            found = self._matcher.match(self._features[name0], self._features[name1])
            maps = local_affine_maps(found.keypoints0, found.keypoints1, 20)
            self._found = {(name0, name1): (found, maps)}
        found, maps = self._found[name0, name1]
        if len(found) < 30:
            return np.zeros((len(points), 2)), np.zeros(len(points), bool)
        away, nearest = cKDTree(found.keypoints0).query(points)
        k0, k1 = found.keypoints0[nearest], found.keypoints1[nearest]
        return transfer(points, k0, k1, maps[nearest]), away < 12


def write_matches(
    folder: Path,
    sizes: dict[str, tuple[int, int]],
    warp: Callable[[str, str, np.ndarray], tuple[np.ndarray, np.ndarray]],
    args: argparse.Namespace,
) -> None:
    """A file for each pair with samples of it at random points, with noise and wrong ones."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    order = {name: number for number, name in enumerate(sizes)}
    for name0, name1 in itertools.combinations(sizes, 2):
        if args.neighbours is not None and order[name1] - order[name0] > args.neighbours:
            continue
        (w0, h0), (w1, h1) = sizes[name0], sizes[name1]
        points = rng.uniform(0, [w0 - 1, h0 - 1], (8 * args.samples, 2))
        there, good = warp(name0, name1, points)
        points, there = points[good][: args.samples], there[good][: args.samples]
        if len(points) < 100:
            continue
        points = points + rng.normal(0, args.noise, points.shape)
        there = there + rng.normal(0, args.noise, there.shape)
        wrong = rng.random(len(points)) < args.wrong
        there[wrong] = rng.uniform(0, [w1 - 1, h1 - 1], (wrong.sum(), 2))
        inside = (points >= 0).all(1) & (points <= [w0 - 1, h0 - 1]).all(1)
        inside &= (there >= 0).all(1) & (there <= [w1 - 1, h1 - 1]).all(1)
        stem0, stem1 = Path(name0).stem, Path(name1).stem
        scores = rng.uniform(0.3, 1, len(points))
        arrays = {"keypoints0": points, "keypoints1": there, "scores": scores}
        kept = {key: array[inside].astype(np.float32) for key, array in arrays.items()}
        np.savez(folder / f"{stem0}__{stem1}.npz", **kept)


def enlarged(images: Path, out: Path, factor: int) -> Path:
    """The photos `factor` times as large, in a folder of their own."""
    out.mkdir(parents=True, exist_ok=True)
    for name in find_images(images):
        pixels = stored_pixels(images / name)
        larger = cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(out / name), larger[..., ::-1])
    return out


def into_colmap(
    out: Path,
    images: Path,
    sizes: dict[str, tuple[int, int]],
    known: pycolmap.Reconstruction | None,
    rounded: bool,
) -> Path:
    """COLMAP's model of the points as they are or rounded; the folder of the largest."""
    out.mkdir(parents=True, exist_ok=True)
    database = out / "database.db"
    database.unlink(missing_ok=True)
    by_stem = {Path(name).stem: name for name in sizes}
    index: dict[str, dict] = defaultdict(dict)
    pairs = {}
    for file in sorted((out.parent / "matches").glob("*.npz")):
        names = [by_stem[stem] for stem in file.stem.split("__")]
        content = np.load(file)
        sides = []
        for name, k in zip(names, ("keypoints0", "keypoints1"), strict=True):
            points = (np.rint(content[k]) if rounded else content[k]).tolist()
            sides.append([index[name].setdefault(tuple(p), len(index[name])) for p in points])
        pairs[tuple(names)] = np.unique(np.array(sides, np.uint32).T, axis=0)
    with quiet_colmap(), pycolmap.Database.open(database) as db:
        reader = pycolmap.ImageReaderOptions()
        mapping = pycolmap.IncrementalPipelineOptions()
        if known is not None:
            camera = next(iter(known.cameras.values()))
            camera.rescale(*next(iter(sizes.values())))
            reader.camera_model = camera.model_name
            reader.camera_params = camera.params_to_string()
            mapping.ba_refine_focal_length = mapping.ba_refine_extra_params = False
        pycolmap.import_images(database, images, pycolmap.CameraMode.SINGLE, options=reader)
        ids = {image.name: image.image_id for image in db.read_all_images()}
        for name, points in index.items():
            db.write_keypoints(ids[name], np.array(list(points), np.float32) + 0.5)
        for (a, b), matches in pairs.items():
            db.write_matches(ids[a], ids[b], matches)
    with quiet_colmap():
        listed = out / "pairs.txt"
        listed.write_text("".join(f"{a} {b}\n" for a, b in pairs))
        pycolmap.verify_matches(database, listed)
        (out / "sparse").mkdir(exist_ok=True)
        models = pycolmap.incremental_mapping(database, images, out / "sparse", options=mapping)
    if not models:
        raise EdmHlocError("no model")
    best = max(models.values(), key=lambda model: model.num_reg_images())
    (out / "model").mkdir(exist_ok=True)
    best.write_binary(out / "model")
    return out / "model"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for everything")
    parser.add_argument("--views", type=int, default=12, help="photos of the rendered scene")
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480), help="of its photos, px")
    parser.add_argument("--samples", type=int, default=5000, help="matches of a pair")
    parser.add_argument("--noise", type=float, default=0.7, help="of both points along an axis, px")
    parser.add_argument("--wrong", type=float, default=0.05, help="share of wrong matches")
    parser.add_argument("--neighbours", type=int, help="match only with so many next photos")
    parser.add_argument("--images", type=Path, help="real photos instead")
    parser.add_argument("--truth", type=Path, help="COLMAP model with their true cameras")
    parser.add_argument("--known", action="store_true", help="give all ways the true intrinsics")
    parser.add_argument(
        "--enlarge", type=int, default=1, metavar="N", help="photos N times as large"
    )
    args = parser.parse_args()
    images, truth, scene = args.images, args.truth, args.out / "scene"
    if images is None:
        from edm_hloc.synthetic.photo_collection import make_photo_collection

        if not (scene / "truth").is_dir():
            make_photo_collection(
                scene, args.views, (args.size[0], args.size[1]), seed=3, depth_maps=True
            )
        images, truth = scene / "images", scene / "truth"
    if args.enlarge > 1:
        images = enlarged(images, args.out / "photos", args.enlarge)
    sizes = {name: photo_size(images / name) for name in find_images(images)}
    if not any((args.out / "matches").glob("*.npz")):
        warp = TrueWarp(scene, args.enlarge) if args.images is None else MatchedWarp(images)
        write_matches(args.out / "matches", sizes, warp, args)

    def imported(*options: str) -> Path:
        run = args.out / "-".join(["imported", *(o.strip("-") for o in options)])
        words = [str(args.out / "matches"), str(run), "--images", str(images), *options]
        words += ["--known", str(truth)] if args.known else []
        if cli.main(["import-matches", *words, "--camera-mode", "single", "--tracks", "none"]):
            raise EdmHlocError("no model")
        return run / "model"

    def colmap(name: str, rounded: bool) -> Path:
        known = read_model(truth) if args.known else None
        return into_colmap(args.out / name, images, sizes, known, rounded)

    rows = []
    for title, way in (
        ("as they are into COLMAP", lambda: colmap("colmap-unrounded", False)),
        ("rounded into COLMAP", lambda: colmap("colmap-rounded", True)),
        ("import-matches --refine none", lambda: imported("--refine", "none")),
        ("import-matches", imported),
    ):
        start = time.process_time()
        try:
            model = way()
            seconds = time.process_time() - start
            size = ModelStatistics.of(read_model(model))
            cells = [f"{size.registered} of {len(sizes)}", f"{size.points:,}"]
            cells.append(f"{size.mean_track_length:.2f}")
            if truth is not None:
                off = compare(model, truth)
                cells.append(f"{off.rotation_median:.3f}° / {off.rotation_max:.3f}°")
                cells.append(f"{off.position_median:.3f} % / {off.position_max:.3f} %")
            else:
                cells += ["", ""]
            rows.append(f"| {title} | {' | '.join(cells)} | {seconds:.0f} s |")
        except EdmHlocError as error:
            rows.append(f"| {title} | none: {error} | | | | | |")
    titles = ("way", "photos", "points", "track length", "rotation: median / max")
    print(f"| {' | '.join(titles)} | position, of the extent | CPU time |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
