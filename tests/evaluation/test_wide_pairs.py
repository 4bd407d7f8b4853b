"""HPatches, EVD and WxBS: errors in closed form, their layouts, and runs end to end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.matches import Matches
from edm_hloc.cli import main
from edm_hloc.evaluation.epipolar_recall import DISTANCES, WXBS, epipolar_recall, measure_recall
from edm_hloc.evaluation.homography import (
    EVD,
    HPATCHES,
    corner_error,
    measure_homography,
    summarise_homographies,
    warped,
)
from edm_hloc.evaluation.input_sizes import InputSize
from edm_hloc.evaluation.wide_pairs import evaluate_wide_pairs, published_protocol
from edm_hloc.evaluation.wide_sets import WidePair, read_wide_set
from edm_hloc.images.load import NetworkImage
from edm_hloc.matchers.base import Features, Matcher, MatcherInfo, Preprocessing

SIZES = ((640, 480), (800, 600), (600, 900), (1000, 720), (640, 480), (333, 250))
SHIFT = np.array([2.4, 3.2])  # of length 4, in pixels of the resized photos


def homography(number: int) -> np.ndarray:
    """From photo 1 to photo `number`, in pixels as they are."""
    rng = np.random.default_rng(number)
    H = np.eye(3) + rng.uniform(-0.15, 0.15, (3, 3)) * [[1, 1, 60], [1, 1, 60], [1e-3, 1e-3, 0]]
    H[:2] *= SIZES[number - 1][0] / SIZES[0][0]
    return H


def write_photo(path: Path, size: tuple[int, int], value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size[1], size[0], 3), value, np.uint8)
    path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())


def write_matrix(path: Path, matrix: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(" ".join(f"{v:.12g}" for v in row) + "\n" for row in matrix))


@pytest.fixture
def hpatches(tmp_path: Path) -> Path:
    root = tmp_path / "hpatches"
    for s, name in enumerate(("i_books", "v_wall", "v_talent")):  # the last one is left out
        for number, size in enumerate(SIZES, start=1):
            write_photo(root / name / f"{number}.ppm", size, 100 * (s % 2) + 10 * number)
            if number > 1:
                write_matrix(root / name / f"H_1_{number}", homography(number))
    return root


class PlaneMatcher(Matcher):
    """Exact matches of a grid by the homographies, moved by a shift in the resized photos.

    It knows a photo by its grey value, gives wrong matches of low scores beside the true ones, and
    only three matches to photo 6.
    """

    info = MatcherInfo("plane", Preprocessing(divisor=32))

    def __init__(self, shift: np.ndarray, size: InputSize = HPATCHES.size) -> None:
        self.shift, self.size = shift, size

    @property
    def provenance(self) -> dict[str, str | int | float | bool | None]:
        return {"matcher": "plane", "shift": float(self.shift[0])}

    def encode(self, image: NetworkImage) -> Features:
        assert all(side % 32 == 0 for side in image.tensor.shape[1:])
        number = round(float(image.tensor.mean()) * 255) % 100 // 10
        return Features((number, image.original_size), image.transform, 1)

    def match_pixels(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        return [self.find(*pair) for pair in pairs]

    def find(self, first: Features, second: Features) -> Matches:
        (_, size0), (number, size1) = first.data, second.data
        x, y = np.meshgrid(np.linspace(0, size0[0] - 1, 30), np.linspace(0, size0[1] - 1, 30))
        x0 = np.column_stack([x.ravel(), y.ravel()])
        x1 = warped(homography(number), x0)
        scale = np.array(size1) / self.size.of(*size1)
        x1 += self.shift * scale
        there = ((x1 >= -0.5) & (x1 <= np.array(size1) - 0.5)).all(axis=1)
        x0, x1 = x0[there], x1[there]
        assert len(x0) > 100
        wrong = np.clip(x0 + 9, 0, np.array(size0) - 1), np.clip(x0, 0, np.array(size1) - 1)
        few = 3 if number == 6 else 1000
        repeated = 2 if few > 3 and self.size == HPATCHES.size else 0
        x0, x1 = (
            np.concatenate([np.resize(a, (few, 2)), *[b] * repeated])
            for a, b in zip((x0, x1), wrong, strict=True)
        )
        scores = np.where(np.arange(len(x0)) < few, 0.9, 0.1).astype(np.float32)
        return Matches(
            first.transform.to_network(x0).astype(np.float32),
            second.transform.to_network(x1).astype(np.float32),
            scores,
        )


def pair_of(H: np.ndarray, size: tuple[int, int] = (640, 480)) -> WidePair:
    return WidePair("a", "b", size, size, "", H)


def test_corner_error_in_closed_form() -> None:
    size = (641, 481)  # corners at 0 and 640, at 0 and 480
    assert corner_error(np.eye(3), np.eye(3), size) == 0
    shifted = np.array([[1, 0, 3], [0, 1, 4], [0, 0, 1.0]])
    assert corner_error(shifted, np.eye(3), size) == pytest.approx(5)
    # twice the scale moves three corners: by 640, by 800 and by 480 px
    assert corner_error(np.diag([2, 2, 1.0]), np.eye(3), size) == pytest.approx(1920 / 4)
    assert corner_error(5 * shifted, 7 * np.eye(3), size) == pytest.approx(5)
    assert corner_error(None, np.eye(3), size) == np.inf
    at_infinity = np.array([[1, 0, 0], [0, 1, 0], [-1 / 640, 0, 1]])
    assert corner_error(at_infinity, np.eye(3), size) == np.inf


def test_hpatches_figures_in_closed_form(hpatches: Path, tmp_path: Path) -> None:
    """Errors are the shift, in pixels where the shorter side is 480 px; photo 6 fails."""
    data = read_wide_set(hpatches)
    assert (data.kind, len(data.pairs)) == ("HPatches", 10)
    out = tmp_path / "out"
    said = evaluate_wide_pairs(data, {"plane": PlaneMatcher(SHIFT)}, out, HPATCHES)
    content = json.loads((out / "homography.json").read_text())
    for result in content["pairs"]["plane"]:
        if result["name1"].endswith("6.ppm"):
            assert result["corners"] == [None] * 5
        else:
            np.testing.assert_allclose(result["corners"], 4.0, atol=2e-3)
    whole, illumination, viewpoint = content["summaries"]
    assert [s["group"] for s in content["summaries"]] == ["all", "illumination", "viewpoint"]
    assert (whole["pairs"], viewpoint["pairs"], whole["failures"]) == (10, 5, 0.2)
    # Recall is 0 below 4 px and 0.8 above it; up to the first error it rises to 1 of n pairs.
    for summary, n in ((whole, 10), (illumination, 5), (viewpoint, 5)):
        expected = [0, *(100 * (4 * 0.5 / n + (t - 4) * 0.8) / t for t in (5, 10))]
        np.testing.assert_allclose(summary["areas"], expected, atol=0.1)
        assert summary["spread"] == 0
    assert "| plane | viewpoint | 5 |" in said
    assert "shorter side 480 px; the best 1,000 matches" in content["protocol"]
    assert "RANSAC at 3 px" in content["protocol"]


def test_exact_matches_have_no_error(hpatches: Path, tmp_path: Path) -> None:
    """Through files, resizing and both frames; errors of EVD are of the photos as they are."""
    data = read_wide_set(hpatches)
    for protocol, truth in (
        (HPATCHES, PlaneMatcher(np.zeros(2))),
        (replace(EVD, visible=False), PlaneMatcher(np.zeros(2), EVD.size)),
    ):
        out = tmp_path / str(protocol.ransac)
        evaluate_wide_pairs(data, {"plane": truth}, out, protocol)
        found = json.loads((out / "homography.json").read_text())["pairs"]["plane"]
        errors = [e for r in found for e in r["corners"] if not r["name1"].endswith("6.ppm")]
        assert max(errors) < 5e-3


def test_half_a_pixel_would_be_noticed() -> None:
    """Matches in COLMAP's frame of a reduced photo are off by the half pixel's change of scale."""
    H = np.diag([1.5, 1.5, 1.0])
    x, y = np.meshgrid(np.linspace(0, 639, 20), np.linspace(0, 479, 20))
    x0 = np.column_stack([x.ravel(), y.ravel()])
    right = Matches(x0, warped(H, x0), np.ones(len(x0)))
    corner = Matches(x0 + 0.5, right.keypoints1 + 0.5, right.scores)
    assert max(measure_homography(pair_of(H), right, HPATCHES).corners) < 1e-4
    off = measure_homography(pair_of(H), corner, HPATCHES).corners
    np.testing.assert_allclose(off, 0.25 * np.sqrt(2), atol=1e-4)


def test_seeds_and_missing_matches() -> None:
    rng = np.random.default_rng(0)
    x0 = rng.uniform(0, 479, (300, 2))
    noisy = Matches(x0, x0 + rng.normal(0, 1.5, x0.shape), np.ones(300))
    result = measure_homography(pair_of(np.eye(3)), noisy, HPATCHES)
    assert len(set(result.corners)) > 1  # each seed draws otherwise
    assert max(result.corners) < 5
    missing = measure_homography(pair_of(np.eye(3)), None, HPATCHES)
    assert (missing.matches, missing.corners) == (0, (np.inf,) * 5)
    (summary,) = summarise_homographies("m", [missing])
    assert (summary.areas, summary.failures) == ((0, 0, 0), 1)


def test_evd_layout(tmp_path: Path) -> None:
    """One homography a pair; the mean error of what both photos show."""
    H = np.array([[1, 0, -300], [0, 1, 0], [0, 0, 1.0]])
    for side in ("1", "2"):
        write_photo(tmp_path / side / "adam.png", (640, 480), 10)
    (tmp_path / "h").mkdir()
    (tmp_path / "h" / "adam.txt").write_text("1\t0\t-300\n0  1 0\n0 0 1\n")
    (tmp_path / "1" / "._adam.png").write_bytes(b"\0\5\26\7Mac OS X")
    data = read_wide_set(tmp_path)
    assert (data.kind, data.pairs[0].name1) == ("EVD", "2/adam.png")
    np.testing.assert_array_equal(data.pairs[0].truth, H)
    protocol = published_protocol(data)
    # An error that grows from 0 at x = 300 to the right: 1 % of x − 300, visible up to 639.
    x, y = np.meshgrid(np.linspace(300, 639, 20), np.linspace(0, 479, 20))
    x0 = np.column_stack([x.ravel(), y.ravel()])
    matches = Matches(x0, warped(np.diag([1.01, 1, 1]) @ H, x0), np.ones(len(x0)))
    result = measure_homography(data.pairs[0], matches, protocol)
    np.testing.assert_allclose(result.visible, 0.01 * 339 / 2, rtol=1e-4)
    np.testing.assert_allclose(result.corners, 0.01 * (300 + 339) / 2, rtol=1e-4)
    (summary,) = summarise_homographies("m", [result])
    assert summary.visible == pytest.approx(80)  # of 1, 1.39, 1.95 … the last eight


def test_wxbs_recall_in_closed_form(tmp_path: Path) -> None:
    """Correspondences at known distances from the epipolar lines of a sideways motion."""
    off = np.array([0.0, 0.7, 1.5, 3.0, 5.0, 10.0, 13.0, 100.0])
    x = np.linspace(50, 500, len(off))
    known = np.column_stack([x, x / 2 + 20, x + 40, x / 2 + 20 + off])
    for kind, name in (("WGABS", "kpi"), ("WGALBS", "petrzin")):  # the second is for validation
        for number in ("01", "02"):
            write_photo(tmp_path / "v1.1" / kind / name / f"{number}.png", (640, 480), 10)
        write_matrix(tmp_path / "v1.1" / kind / name / "corrs.txt", known)
    data = read_wide_set(tmp_path)
    (pair,) = data.pairs
    assert (data.kind, pair.group, pair.truth.shape) == ("WxBS", "WGABS", (8, 4))
    F = np.array([[0, 0, 0], [0, 0, -1], [0, 1.0, 0]])  # rows are epipolar lines
    distances = off * np.sqrt(2)  # of both lines
    expected = [(distances <= d).mean() for d in DISTANCES]
    np.testing.assert_allclose(epipolar_recall(3 * F, pair.truth), expected)
    np.testing.assert_allclose(epipolar_recall(None, pair.truth), 0)
    rng = np.random.default_rng(0)
    x0 = rng.uniform(0, 479, (200, 2))
    matches = Matches(x0, x0 + np.column_stack([rng.uniform(5, 90, 200), np.zeros(200)]), x0[:, 0])
    found = measure_recall(pair, matches, WXBS)
    assert found.recall[1:] == pytest.approx(expected[1:])
    assert measure_recall(pair, None, WXBS).recall == (0,) * 20


def test_bad_folders_are_explained(hpatches: Path, tmp_path: Path) -> None:
    with pytest.raises(EdmHlocError, match="no folder"):
        read_wide_set(tmp_path / "gone")
    (tmp_path / "photos").mkdir()
    with pytest.raises(
        EdmHlocError, match=r"neither HPatches' folders .* nor EVD's .* nor .* WxBS"
    ):
        read_wide_set(tmp_path / "photos")
    file = hpatches / "v_wall" / "H_1_4"
    for text, message in (
        ("1 0 0\n0 1 0\n", "not an invertible matrix"),
        ("1 0 0\n0 1 0\n0 0 0\n", "not an invertible matrix"),
        ("1 0\n0 1\n0 0\n", "lines of 3 numbers"),
        ("1 0 0\n0 1 0\n0 0 nan\n", "finite numbers"),
    ):
        file.write_text(text)
        with pytest.raises(EdmHlocError, match=rf"homography .*H_1_4.*{message}"):
            read_wide_set(hpatches)
    file.unlink()
    with pytest.raises(EdmHlocError, match=r"homography .*H_1_4 is missing"):
        read_wide_set(hpatches)
    (hpatches / "i_books" / "3.ppm").unlink()
    with pytest.raises(EdmHlocError, match=r"photo .*3\.ppm .*is missing"):
        read_wide_set(hpatches)


def test_command(hpatches: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A textured plane through the shipped network and SIFT; unknown rivals before any work."""
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.uniform(0, 255, (480, 640)).astype(np.float32), (0, 0), 2)
    texture = cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    root = tmp_path / "planes"
    for number in range(1, 7):
        H = np.array([[1, 0.02 * number, 3 * number], [0, 1, -2 * number], [0, 1e-5, 1]])
        H = np.eye(3) if number == 1 else H
        (root / "v_plane").mkdir(parents=True, exist_ok=True)
        photo = cv2.warpPerspective(texture, H, (640, 480))
        assert cv2.imwrite(str(root / "v_plane" / f"{number}.png"), photo)
        if number > 1:
            write_matrix(root / "v_plane" / f"H_1_{number}", H)
    arguments = ["evaluate", "homography", str(root), str(tmp_path / "out")]
    options = ["--shorter-side", "160", "--ransac", "2", "--beside", "sift"]
    assert main([*arguments, *options]) == 0
    said = capsys.readouterr().out
    assert "shorter side 160 px" in said
    assert "RANSAC at 2 px" in said
    results = json.loads((tmp_path / "out" / "homography.json").read_text())["summaries"]
    assert [s["matcher"] for s in results] == ["edm", "sift"]
    assert min(s["areas"][2] for s in results) > 85
    assert main([*arguments, "--beside", "sift,orb"]) == 1
    assert "no rival 'orb'" in capsys.readouterr().err
    assert main(["evaluate", "homography", str(tmp_path), str(tmp_path / "o")]) == 1
    assert "neither HPatches' folders" in capsys.readouterr().err
