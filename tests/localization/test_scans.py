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
    savemat(tmp_path / "b.mat", {"XYZcut": np.zeros((4, 5))})
    with pytest.raises(EdmHlocError, match=r"XYZcut is \(4, 5\)"):
        read_scan(tmp_path / "b.mat")
    path = tmp_path / "database/alignments/DUC1/transformations/DUC_trans_024.txt"
    with pytest.raises(EdmHlocError, match=r"DUC_trans_024\.txt"):
        scan_alignment(tmp_path, name)
    path.parent.mkdir(parents=True)
    rows = [f"{k} 0 0 {k}" for k in range(11)]
    path.write_text("\n".join(rows))
    np.testing.assert_array_equal(scan_alignment(tmp_path, name)[:, 0], [7, 8, 9, 10])
    path.write_text("\n".join(rows[:9]))
    with pytest.raises(EdmHlocError, match="lines 8 to 11"):
        scan_alignment(tmp_path, name)


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
