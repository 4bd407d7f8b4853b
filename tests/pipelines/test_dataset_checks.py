"""`--dry-run` names what the run of a benchmark would refuse or could not use."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.cli import main
from edm_hloc.localization.scans import check_scan, scan_path
from edm_hloc.pipelines.aachen import AachenDataset, localize_aachen
from edm_hloc.pipelines.inloc import InLocDataset
from edm_hloc.synthetic.aachen_miniature import make_aachen
from edm_hloc.synthetic.inloc_miniature import make_inloc
from tests.scenes import TruthMatcher


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("miniatures")
    make_aachen(folder / "aachen", 4, (2, 1), (64, 64), depth_maps=True)
    make_inloc(folder / "inloc", 4, 3, (64, 64))
    return folder


@pytest.fixture
def data(originals: Path, tmp_path: Path) -> Path:
    return shutil.copytree(originals, tmp_path / "data")


def said_of(benchmark: str, data: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What a dry run that fails says."""
    assert main([benchmark, str(data / benchmark), str(data / "out"), "--dry-run"]) == 1
    said = capsys.readouterr()
    assert "Complete" not in said.out
    return said.err


@pytest.mark.slow
def test_datasets_without_queries(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, night = AachenDataset(data / "aachen").query_lists
    night.write_text("# none\n")
    assert f"The list of queries {night} is empty" in said_of("aachen", data, capsys)
    matcher = TruthMatcher(data / "aachen", images="images_upright")
    with pytest.raises(EdmHlocError, match=f"The list of queries {night} is empty"):
        localize_aachen(data / "aachen", tmp_path / "out", matcher)
    queries = data / "inloc" / "query" / "iphone7"
    for path in queries.iterdir():
        path.unlink()
    assert str(queries) in said_of("inloc", data, capsys)
    assert not (tmp_path / "out").exists()


def test_two_lists_of_the_same_queries(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    day, night = AachenDataset(data / "aachen").query_lists
    shutil.copy(day, night)
    assert f"{night} names no other queries than {day}: get it again" in said_of(
        "aachen", data, capsys
    )


def test_a_model_without_points(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = AachenDataset(data / "aachen").model
    (points,) = model.glob("points3D.*")
    points.write_bytes(bytes(8) if points.suffix == ".bin" else b"")
    assert f"The model {model} holds no 3D points" in said_of("aachen", data, capsys)


def test_queries_of_one_name(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, night = AachenDataset(data / "aachen").query_lists
    text = night.read_text()
    name = text.split()[0]
    night.write_text(text + text.replace(name, f"other/{name}"))
    assert f"Two queries are called {Path(name).name}" in said_of("aachen", data, capsys)
    one = data / "inloc" / InLocDataset(data / "inloc").queries()[0]
    (one.parent / "more").mkdir()
    shutil.copy(one, one.parent / "more")
    assert f"Two queries are called {one.name}" in said_of("inloc", data, capsys)


def test_photos_that_cannot_be_used(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    aachen = AachenDataset(data / "aachen")
    empty, cut, cropped = (aachen.images / name for name in aachen.queries())
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[:100])
    Image.new("L", (50, 20)).save(cropped)
    damaged = aachen.images / "db" / "2.jpg"
    damaged.write_bytes(b"no photo")
    said = said_of("aachen", data, capsys)
    assert "4 photos of the model or the queries" in said
    assert "  db/2.jpg cannot be read" in said
    assert f"Cannot read image {empty}" in said
    assert f"Cannot read image {cut}" in said
    assert f"{cropped} has 50 × 20" in said
    query = data / "inloc" / InLocDataset(data / "inloc").queries()[0]
    query.write_bytes(b"")
    assert f"  Cannot read image {query}" in said_of("inloc", data, capsys)


def test_scans_that_cannot_be_used(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inloc = InLocDataset(data / "inloc")
    missing, damaged, flat, swapped = inloc.database()
    scan_path(inloc.root, missing).unlink()
    scan_path(inloc.root, damaged).write_bytes(b"no scan")
    savemat(scan_path(inloc.root, flat), {"XYZcut": np.ones((64, 64))})
    savemat(scan_path(inloc.root, swapped), {"XYZcut": np.ones((32, 64, 3))})
    said = said_of("inloc", data, capsys)
    assert "4 queries, scans or alignments" in said
    assert f"{missing}: No scan" in said
    assert f"{damaged}: {scan_path(inloc.root, damaged)} is damaged or no scan" in said
    assert "XYZcut is (64, 64) of double, not (height, width, 3)" in said
    assert "XYZcut has 32 × 64 points, but the photo 64 × 64 pixels" in said
    savemat(scan_path(inloc.root, swapped), {"XYZcut": np.ones((32, 32, 3))})  # is scaled
    check_scan(inloc.root, swapped)
