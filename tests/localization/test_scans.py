"""InLoc's scans: points between pixels, formats, alignments."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.keypoints.h5 import FeatureWriter
from edm_hloc.localization.scans import (
    ScanPoints,
    alignment_path,
    read_scan,
    scan_alignment,
    scan_path,
    scan_points,
    write_scan_points,
)


def test_scans_between_pixels_at_edges_and_in_holes() -> None:
    y, x = np.mgrid[:5, :7].astype(float)
    scan = np.stack([x, y, np.full_like(x, 100.0)], axis=2)  # smooth: interpolated exactly
    pixels = np.array([[0.0, 0.0], [2.25, 3.5], [6.4, 4.4], [-0.4, 0.0], [7.0, 1.0], [-1.0, 2.0]])
    points = scan_points(scan, pixels)
    np.testing.assert_allclose(points[:2], [[0, 0, 100], [2.25, 3.5, 100]])
    np.testing.assert_allclose(points[2:4], [[6, 4, 100], [0, 0, 100]])  # held at the border
    assert np.isnan(points[4:]).all()  # outside
    scan[:, 4:] *= 3  # an edge: nothing between the surfaces
    np.testing.assert_allclose(scan_points(scan, [[3.4, 1.0], [3.6, 1.0]])[:, 2], [100, 300])
    scan[2, 2] = np.nan
    found = scan_points(scan, [[2.2, 2.2], [1.2, 1.2]])
    assert np.isnan(found[0]).all()
    np.testing.assert_allclose(found[1], [1, 1, 100])  # a neighbour is missing: the nearest


def test_formats_of_scans_and_broken_ones(tmp_path: Path) -> None:
    name = "database/cutouts/DUC1/024/DUC_cutout_024_0_0.jpg"
    with pytest.raises(EdmHlocError, match=r"No scan .*DUC_cutout_024_0_0\.jpg\.mat"):
        read_scan(tmp_path / f"{name}.mat")
    (tmp_path / "a.mat").write_bytes(b"no mat")
    with pytest.raises(EdmHlocError, match="damaged or no scan"):
        read_scan(tmp_path / "a.mat")
    points = np.random.default_rng(0).uniform(size=(4, 5, 3)).astype(np.float32)
    savemat(tmp_path / "old.mat", {"XYZcut": points})
    with h5py.File(tmp_path / "new.mat", "w", userblock_size=512) as file:
        file["XYZcut"] = points.T  # as MATLAB's -v7.3 orders axes
    for name_of_format in ("old", "new"):
        np.testing.assert_array_equal(read_scan(tmp_path / f"{name_of_format}.mat"), points)
    for useless, message in (
        (np.ones((4, 5)), r"XYZcut is \(4, 5\)"),
        (np.ones((4, 5, 3), complex), r"XYZcut is \(4, 5, 3\) of complex128, not .* real numbers"),
        (np.zeros((0, 0, 3)), r"XYZcut, \(0, 0, 3\), holds no point"),
        (np.zeros((4, 5, 3), np.int16), "holds no point, only zeros or NaN"),
        (np.full((4, 5, 3), np.nan), "holds no point, only zeros or NaN"),
    ):
        savemat(tmp_path / "b.mat", {"XYZcut": useless})
        with pytest.raises(EdmHlocError, match=message):
            read_scan(tmp_path / "b.mat")
    holes = np.ones((4, 5, 3), np.int16)
    holes[1, 2], holes[2, 2] = 0, (0, 0, 7)  # the second is a point, straight before the scanner
    savemat(tmp_path / "c.mat", {"XYZcut": holes})
    scan = read_scan(tmp_path / "c.mat")
    assert np.argwhere(np.isnan(scan).any(axis=2)).tolist() == [[1, 2]]
    np.testing.assert_array_equal(scan[2, 2], [0, 0, 7])
    path = tmp_path / "database/alignments/DUC1/transformations/DUC_trans_024.txt"
    with pytest.raises(EdmHlocError, match=r"DUC_trans_024\.txt"):
        scan_alignment(tmp_path, name)
    path.parent.mkdir(parents=True)
    rows = [*"abcdefg", "0 -1.0001 0 7", "1 0.0002 0 8", "0 0 1 9", "0 0 0 1"]
    path.write_text("\n".join(rows))
    np.testing.assert_array_equal(scan_alignment(tmp_path, name)[:, 3], [7, 8, 9, 1])
    path.write_text("\n".join(rows[:9]))
    with pytest.raises(EdmHlocError, match="lines 8 to 11"):
        scan_alignment(tmp_path, name)


@pytest.mark.parametrize(
    "rows",
    [
        ("0 1 0 0", "-1 0 0 0", "0 0 1 0", "7 8 9 1"),  # transposed
        ("0 0 0 0", "0 0 0 0", "0 0 0 0", "0 0 0 1"),
        ("1 0 0 7", "0 1 0 8", "0 0 -1 9", "0 0 0 1"),  # mirrored
        ("7 0 -1 0", "8 1 0 0", "9 0 0 1", "1 0 0 0"),  # the translation first
    ],
)
def test_alignments_that_are_not_rigid_are_refused(rows: tuple[str, ...], tmp_path: Path) -> None:
    path = alignment_path(tmp_path, "database/cutouts/DUC1/024/DUC_cutout_024_0_0.jpg")
    path.parent.mkdir(parents=True)
    path.write_text("\n" * 7 + "\n".join(rows))
    with pytest.raises(EdmHlocError, match=r"DUC_trans_024\.txt: lines 8 to 11 are not a rotation"):
        scan_alignment(tmp_path, "database/cutouts/DUC1/024/DUC_cutout_024_0_0.jpg")


@pytest.mark.parametrize(
    ("shape", "fits"),
    [
        ((240, 320), True),  # as in the dataset
        ((120, 160), True),
        ((241, 320), True),  # resized, with each side rounded
        ((27, 36), True),
        ((361, 480), True),
        ((320, 240), False),
        ((160, 120), False),
        ((240, 240), False),
        ((240, 326), False),
    ],
)
def test_scans_of_another_shape_than_their_photo_give_no_points(
    shape: tuple[int, int], fits: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = "database/cutouts/DUC1/024/DUC_cutout_024_0_0.jpg"
    height, width = shape
    y, x = np.mgrid[:height, :width]
    ray = np.stack([(x + 0.5) / width - 0.5, (0.75 * (y + 0.5) / height - 0.375)], axis=2)
    scan = np.dstack([ray, np.full(shape, np.sqrt(0.75))]) * (2 + x / width)[..., None]
    (tmp_path / name).parent.mkdir(parents=True)
    Image.new("RGB", (320, 240)).save(tmp_path / name)
    savemat(scan_path(tmp_path, name), {"XYZcut": scan})
    alignment = alignment_path(tmp_path, name)
    alignment.parent.mkdir(parents=True)
    alignment.write_text("\n" * 7 + "1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    features = tmp_path / "features.h5"
    with FeatureWriter(features, {}) as writer:
        writer.add(name, np.array([[80.0, 60.0], [240.0, 120.0]]), np.ones(2))

    useless = write_scan_points(tmp_path, features, [name], tmp_path / "points")
    pose = ScanPoints(tmp_path, tmp_path / "points", [name]).pose(name)
    assert (useless, pose is not None) == (([], True) if fits else ([name], False))
    if fits:
        points = ScanPoints(tmp_path, tmp_path / "points", [name]).points(name)
        np.testing.assert_allclose(points[:, 0] / points[:, 2], [-0.287, 0.290], atol=0.02)
    else:
        assert f"XYZcut has {height} × {width} points, but the photo 240 × 320" in caplog.text
        assert ("swapped" in caplog.text) == (height > width)


def test_points_that_an_earlier_version_read_otherwise_are_made_anew(tmp_path: Path) -> None:
    features, points = tmp_path / "features.h5", tmp_path / "points" / "a.jpg.npy"
    with FeatureWriter(features, {}):
        pass
    points.parent.mkdir()
    points.write_bytes(b"of a scan with swapped axes")
    record = points.with_name(".features")
    record.write_text(f"{features.stat().st_mtime_ns}\n")
    assert write_scan_points(tmp_path, features, [], points.parent) == []
    assert not points.exists()


def test_other_scans_have_another_fingerprint(tmp_path: Path) -> None:
    names = [f"database/cutouts/DUC1/024/DUC_cutout_024_{yaw}_0.jpg" for yaw in (0, 30)]

    def fingerprint(names: list[str] = names) -> str:
        return ScanPoints(tmp_path, tmp_path / "points", names).fingerprint()

    before = fingerprint()
    assert fingerprint(names[::-1]) == before
    assert fingerprint(names[:1]) != before
    alignment = alignment_path(tmp_path, names[0])
    for path in (tmp_path / "points" / f"{names[0]}.npy", scan_path(tmp_path, names[0]), alignment):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"something else")
        assert fingerprint() != before
        before = fingerprint()


def test_points_of_replaced_scans_are_looked_up_again_and_no_others(tmp_path: Path) -> None:
    names = [f"database/cutouts/DUC1/024/DUC_cutout_024_{yaw}_0.jpg" for yaw in (0, 30)]
    folder, features = tmp_path / "points", tmp_path / "features.h5"
    alignment = alignment_path(tmp_path, names[0])
    alignment.parent.mkdir(parents=True)

    def write_scan(name: str, distance: float) -> None:
        scan = np.full((24, 32, 3), distance, np.float32)
        savemat(scan_path(tmp_path, name), {"XYZcut": scan})

    def align(shift: int) -> None:
        alignment.write_text("\n" * 7 + f"1 0 0 {shift}\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")

    def x_of_points() -> list[float]:
        assert write_scan_points(tmp_path, features, names, folder) == []
        return [float(ScanPoints(tmp_path, folder, names).points(name)[0, 0]) for name in names]

    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 24)).save(tmp_path / name)
        write_scan(name, 1)
    align(0)
    with FeatureWriter(features, {}) as writer:
        for name in names:
            writer.add(name, np.array([[5.0, 5.0]]), np.ones(1))
    assert x_of_points() == [1, 1]
    stamps = [(folder / f"{name}.npy").stat().st_mtime_ns for name in names]
    write_scan(names[0], 7)
    os.utime(scan_path(tmp_path, names[0]), ns=(0, 0))  # a copy keeps its time
    assert x_of_points() == [7, 1]
    assert (folder / f"{names[1]}.npy").stat().st_mtime_ns == stamps[1]
    align(10)
    assert x_of_points() == [17, 11]
