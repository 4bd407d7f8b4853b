"""Measures size, time to make and time to open of a report, by the number of photos.

    python benchmarks/report_pages.py [--photos 10 100 1000] [--out outputs/report_pages]

The files of each run are synthetic: photos of 1280 × 960 px (crops of rendered ones), 1,700
keypoints per photo, pairs of each photo with its 24 neighbours, and 300 points per photo. The page
is opened in headless Chromium where chromium, chromedriver and selenium are installed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pycolmap
from tqdm import tqdm

from edm_hloc.base.colmap import quiet_colmap
from edm_hloc.base.process import peak_memory_mib, versions
from edm_hloc.keypoints.h5 import FeatureWriter, MatchWriter
from edm_hloc.pairs.files import write_pairs
from edm_hloc.report.page import make_report
from edm_hloc.synthetic.photo_collection import make_photo_collection

SIZE = (1280, 960)
FOCAL = 1100.0
KEYPOINTS, POINTS, NEIGHBOURS = 1700, 300, 12


def make_photos(folder: Path, number: int, rendered: Path) -> list[str]:
    """Writes noisy crops of rendered photos, which compress about as well as real photos."""
    rng = np.random.default_rng(0)
    sources = [cv2.imread(str(path)) for path in sorted(rendered.iterdir())]
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for i in tqdm(range(number), desc="Photos", disable=None):
        source = sources[i % len(sources)]
        height, width = source.shape[:2]
        w = int(width * rng.uniform(0.5, 1.0))
        h = w * 3 // 4
        x, y = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
        photo = cv2.resize(source[y : y + h, x : x + w], SIZE, interpolation=cv2.INTER_CUBIC)
        noise = rng.normal(0, 6, photo.shape)
        names.append(f"IMG_{i:05d}.jpg")
        noisy = (photo + noise).clip(0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / names[-1]), noisy, [cv2.IMWRITE_JPEG_QUALITY, 85])
    return names


def make_run(out: Path, photos: Path, names: list[str]) -> None:
    """Writes the files of a run: cameras in a row before a wall, five of which see each point."""
    rng = np.random.default_rng(1)
    number = len(names)
    first = np.repeat(np.arange(number), POINTS)  # the first photo that sees each point
    spread = rng.uniform([0, 0.05], [1, 0.95], (len(first), 2))
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera(
        model="SIMPLE_RADIAL", width=SIZE[0], height=SIZE[1], params=[FOCAL, 640, 480, 0.0]
    )
    camera.camera_id = 1
    model.add_camera_with_trivial_rig(camera)
    step = 0.4
    world = np.column_stack(
        [
            step * (first + 2 + 2 * (spread[:, 0] - 0.5)),
            3 * (spread[:, 1] - 0.5),
            np.zeros(len(first)),
        ]
    )
    world[:, 2] = 0.4 * np.sin(3 * world[:, 0]) + rng.normal(0, 0.02, len(first))
    keypoints, ids = {}, {}
    for i, name in enumerate(tqdm(names, desc="Keypoints", disable=None)):
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(), np.array([-step * i, 0, 4.0]))
        seen = np.flatnonzero((first <= i) & (first > i - 5))
        xy = np.asarray(camera.img_from_cam(pose * world[seen]))
        xy += rng.normal(0, 0.5, xy.shape)
        others = rng.uniform([0, 0], SIZE, (KEYPOINTS - len(seen), 2))
        keypoints[name], ids[name] = np.vstack([xy, others]), seen
        image = pycolmap.Image(
            name=name, image_id=i + 1, camera_id=1, keypoints=keypoints[name].astype(float)
        )
        model.add_image_with_trivial_frame(image, pose)
    place = {
        name: dict(zip(seen.tolist(), range(len(seen)), strict=True)) for name, seen in ids.items()
    }
    for p in tqdm(range(len(first)), desc="Points", disable=None):
        track = pycolmap.Track()
        for i in range(first[p], min(first[p] + 5, number)):
            track.add_element(i + 1, place[names[i]][p])
        if track.length() > 1:
            model.add_point3D(world[p], track, rng.integers(60, 220, 3).astype(np.uint8))
    (out / "model").mkdir(parents=True)
    model.write_binary(out / "model")

    pairs = [
        (names[i], names[j])
        for i in range(number)
        for j in range(i + 1, min(i + 1 + NEIGHBOURS, number))
    ]
    write_pairs(out / "pairs.txt", pairs)
    with FeatureWriter(out / "features.h5", {}) as features:
        for name in names:
            features.add(name, keypoints[name] - 0.5, np.ones(KEYPOINTS))
    db = pycolmap.Database.open(out / "database.db")
    with MatchWriter(out / "matches.h5", {}) as matches, pycolmap.DatabaseTransaction(db):
        db.write_camera(camera, use_camera_id=True)
        for i, name in enumerate(names):
            db.write_image(
                pycolmap.Image(name=name, image_id=i + 1, camera_id=1), use_image_id=True
            )
            db.write_keypoints(i + 1, keypoints[name].astype(np.float32))
        for a, b in tqdm(pairs, desc="Pairs", disable=None):
            common = sorted(set(place[a]) & set(place[b]))
            right = np.array([(place[a][p], place[b][p]) for p in common]).reshape(-1, 2)
            free = rng.permutation(np.arange(len(place[a]), KEYPOINTS))[:40]
            wrong = np.column_stack(
                [free, rng.permutation(np.arange(len(place[b]), KEYPOINTS))[:40]]
            )
            both = np.vstack([right, wrong]).astype(np.uint32)
            matches0 = np.full(KEYPOINTS, -1)
            matches0[both[:, 0]] = both[:, 1]
            scores = np.where(matches0 >= 0, rng.beta(5, 2, KEYPOINTS), 0)
            matches.add(a, b, matches0, scores)
            one, two = names.index(a) + 1, names.index(b) + 1
            db.write_matches(one, two, both)
            geometry = pycolmap.TwoViewGeometry(
                config=pycolmap.TwoViewGeometryConfiguration.CALIBRATED,
                inlier_matches=right.astype(np.uint32) if len(right) >= 15 else np.zeros((0, 2)),
            )
            db.write_two_view_geometry(one, two, geometry)
    db.close()
    record = {
        "settings": {
            "images": str(photos),
            "matcher": {"matcher": "made up", "weights_sha256": "0" * 64, "resize_max": 1024},
            "mapping": {"min_inliers": 15},
        },
        "versions": versions(),
        "done": {"keypoints": "", "database": "", "model": ""},
        "results": {"mapped": {"statistics": {}, "components": [number]}},
        "seconds": {"matching": 10.0, "keypoints": 1.0, "database": 2.0, "model": 5.0},
    }
    (out / "run.json").write_text(json.dumps(record))


def load_time(page: Path) -> tuple[float, float, float] | None:
    """Seconds until the page is ready, seconds per 3D frame, and MiB of the heap.

    None if chromium, chromedriver or selenium is not installed.
    """
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver_path = shutil.which("chromedriver")
    try:
        from selenium import webdriver
    except ModuleNotFoundError:
        return None
    if browser is None or driver_path is None:
        return None
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    flags = (
        "--headless=new --no-sandbox --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --disable-quic --use-gl=angle "
        "--use-angle=swiftshader --enable-unsafe-swiftshader --window-size=1280,900"
    )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in [*flags.split(), f"--user-data-dir={profile}"]:
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_path))
        try:
            driver.get("about:blank")
            start = time.monotonic()
            driver.get(page.resolve().as_uri())
            while driver.execute_script("return document.documentElement.dataset.ready") != "yes":
                time.sleep(0.02)
            ready = time.monotonic() - start
            frame = driver.execute_script(
                "const v = edmReport.viewer, gl = v.renderer.getContext(), p = new Uint8Array(4);"
                "const draw = () => { v.draw(); gl.readPixels(0, 0, 1, 1, gl.RGBA, "
                "gl.UNSIGNED_BYTE, p); }; draw(); const t = performance.now();"
                "for (let i = 0; i < 5; i++) draw(); return (performance.now() - t) / 5000;"
            )
            heap = driver.execute_script("return performance.memory.usedJSHeapSize / 2 ** 20")
            return ready, float(frame), float(heap)
        finally:
            driver.quit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--out", type=Path, default=Path("outputs/report_pages"))
    args = parser.parse_args()
    rendered = args.out / "rendered"
    if not rendered.is_dir():
        make_photo_collection(rendered, views=8, size=SIZE, seed=0)
    rows = []
    for number in args.photos:
        out = args.out / f"{number}"
        photos = args.out / f"photos_{number}"
        if not (out / "run.json").is_file():
            shutil.rmtree(out, ignore_errors=True)
            names = make_photos(photos, number, rendered / "images")
            with quiet_colmap():
                make_run(out, photos, names)
        start = time.monotonic()
        page = make_report(out)
        seconds = time.monotonic() - start
        opened = load_time(page)
        cells = "–", "–", "–"
        if opened is not None:
            cells = f"{opened[0]:.1f} s", f"{1000 * opened[1]:.0f} ms", f"{opened[2]:.0f} MiB"
        rows.append((number, page.stat().st_size / 1e6, seconds, peak_memory_mib() or 0, *cells))
    print("photos    size   made in  peak memory  opened in  frame   heap")
    for number, size, seconds, memory, ready, frame, heap in rows:
        print(
            f"{number:6d} {size:5.1f} MB  {seconds:5.1f} s  {memory:7.0f} MiB  "
            f"{ready:>8}  {frame:>7} {heap:>8}"
        )


if __name__ == "__main__":
    main()
