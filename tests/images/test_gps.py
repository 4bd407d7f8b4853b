"""Positions of photos: EXIF data, XMP of drones, tables and lists of control points."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.images.gps import (
    Fix,
    Mark,
    matching_names,
    read_control_points,
    read_fix,
    read_fixes,
    read_positions,
)
from edm_hloc.interop.crs import from_earth_to, to_earth_from
from tests.images.gps_photos import DJI, exif_with


@pytest.mark.parametrize(
    ("place", "xmp", "expected"),
    [
        ((41.03467, -83.30573, 281.69), b"", Fix(41.03467, -83.30573, 281.69)),
        ((-33.9, 18.4, -3.5), b"", Fix(-33.9, 18.4, -3.5)),
        ((41.0, 8.5, None), b"", Fix(41.0, 8.5)),
        ((0.0, 0.0, 5.0), b"", None),
        (
            (47.5, 8.5, 500.0),
            b'drone-dji:AbsoluteAltitude="+512.34" drone-dji:RelativeAltitude="+80.10" '
            b'drone-dji:RtkStdLat="0.012" drone-dji:RtkStdLon="0.015" drone-dji:RtkStdHgt="0.03"',
            Fix(47.5, 8.5, 512.34, 0.015, 0.03, 80.1),
        ),
    ],
)
def test_positions_in_headers(
    place: tuple[float, float, float | None], xmp: bytes, expected: Fix | None, tmp_path: Path
) -> None:
    path = tmp_path / "a.jpg"
    more = {"xmp": DJI % xmp} if xmp else {}
    Image.new("L", (32, 32)).save(path, exif=exif_with(*place), **more)
    found = read_fix(path)
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert (found.latitude, found.longitude) == pytest.approx(
        (expected.latitude, expected.longitude), abs=1e-9
    )
    assert replace(found, latitude=0.0, longitude=0.0) == replace(
        expected, latitude=0.0, longitude=0.0
    )


def test_heights_of_one_flight_are_the_barometers(tmp_path: Path) -> None:
    for i, (gps, barometer) in enumerate(((502.0, 50.0), (499.0, 50.5), (511.0, 60.0))):
        xmp = b'drone-dji:AbsoluteAltitude="%f" drone-dji:RelativeAltitude="%f"' % (gps, barometer)
        Image.new("L", (8, 8)).save(tmp_path / f"{i}.jpg", exif=exif_with(47, 8, 0), xmp=DJI % xmp)
    fixes = read_fixes(tmp_path, ["0.jpg", "1.jpg", "2.jpg", "none.jpg"])
    level = 451.0  # the median of 452, 448.5 and 451
    assert [f.altitude for f in fixes.values()] == [level + 50, level + 50.5, level + 60]


def test_heights_by_rtk_are_not_replaced_by_the_barometers(tmp_path: Path) -> None:
    for i, (rtk, barometer) in enumerate(((502.0, 50.0), (499.0, 50.5), (504.0, 50.25))):
        xmp = b'drone-dji:AbsoluteAltitude="%f" drone-dji:RelativeAltitude="%f"' % (rtk, barometer)
        xmp += b' drone-dji:RtkStdHgt="0.02"' * (i < 2)
        Image.new("L", (8, 8)).save(tmp_path / f"{i}.jpg", exif=exif_with(47, 8, 0), xmp=DJI % xmp)
    fixes = read_fixes(tmp_path, ["0.jpg", "1.jpg", "2.jpg"])
    assert [f.altitude for f in fixes.values()] == [502.0, 499.0, 504.0]
    assert [f.altitude_accuracy for f in fixes.values()] == [0.02, 0.02, None]


def test_tables_of_positions(tmp_path: Path) -> None:
    path = tmp_path / "positions.csv"
    path.write_text(
        "# made by hand\nImage;Lat;Lon;Alt;Accuracy;Sigma_z\n"
        "a b.jpg;47.1;8.2;400;0.02;0.05\nc;1;2;;\n"
    )
    fixes = read_positions(path)
    assert fixes == {"a b.jpg": Fix(47.1, 8.2, 400.0, 0.02, 0.05), "c": Fix(1.0, 2.0)}
    names = ["x/a b.jpg", "c.JPG", "d.jpg"]
    assert set(matching_names(fixes, names, path)) == {"x/a b.jpg", "c.JPG"}
    with pytest.raises(
        EdmHlocError, match=r"positions.csv has positions for none of the 1 photos: it names a b"
    ):
        matching_names(fixes, ["e.jpg"], path)
    for text, message in (
        ("", "is empty"),
        ("a.jpg,47,8\n", "line 1: no column 'name'"),
        ("name,x,y\na,1,2\n", "Give latitude .* georeference MODEL PLACED --positions .* --crs"),
        ("name,lat,lon\na,1\n", "line 2: expected name,lat,lon"),
        ("name,lat,lon\na,91,2\n", "line 2: .* they may be swapped"),
        ("name;lat;lon\na;47,1;8,2\n", "line 2: .* written with a point"),
        ("name,lat,lon,std\na,47,2,-1\n", "line 2: .* an accuracy is negative"),
        ("name,lat,lon\na,47,2\nb,1,2\na,48,2\n", "line 4: a is there a second time"),
        ("name,lat,lon\na,nan,2\n", "line 2"),
    ):
        path.write_text(text)
        with pytest.raises(EdmHlocError, match=message):
            read_positions(path)


def test_names_in_a_table_may_begin_like_a_comment(tmp_path: Path) -> None:
    path = tmp_path / "positions.csv"
    path.write_text("#\nlat,lon,name\n#1,2,a.jpg\n1,2,b.jpg\n")
    assert read_positions(path, names=["a.jpg", "b.jpg"]) == {"b.jpg": Fix(1.0, 2.0)}
    path.write_text("# GPS\nname,lat,lon\n#a.jpg,1,2\nb.jpg,3,4\n#b.jpg,5,6\n#b.jpg,7,8\n# , end\n")
    known = {"b.jpg": Fix(3.0, 4.0)}
    assert read_positions(path, names=["#a.jpg", "b.jpg"]) == {"#a.jpg": Fix(1.0, 2.0)} | known
    assert read_positions(path, names=["a.jpg", "b.jpg"]) == known


def test_positions_of_a_survey(tmp_path: Path) -> None:
    """Zurich's main station in the Swiss system and in UTM, by Swisstopo's converter."""
    pytest.importorskip("pyproj")
    path = tmp_path / "positions.csv"
    path.write_text("name,x,y,z\nzurich,2683189.0,1248066.0,410\n")
    fix = read_positions(path, to_earth_from("EPSG:2056"))["zurich"]
    assert (fix.latitude, fix.longitude) == pytest.approx((47.3779, 8.5403), abs=4e-4)
    import numpy as np

    back = from_earth_to("EPSG:2056")(np.array([[fix.latitude, fix.longitude, fix.altitude]]))
    np.testing.assert_allclose(back[0, :2], [2683189.0, 1248066.0], atol=1e-3)
    with pytest.raises(EdmHlocError, match="no reference system"):
        to_earth_from("EPSG:1")
    # as OpenDroneMap writes UTM
    for name, code in (("WGS84 UTM 32N", 32632), ("WGS84 UTM 3S", 32703), ("wgs84 utm 60n", 32660)):
        place = np.array([[-12.5 if "S" in name else 47.5, 6 * (code % 100) - 182.5, 400.0]])
        xyz = from_earth_to(f"EPSG:{code}")(place)
        np.testing.assert_array_equal(from_earth_to(name)(place), xyz)
        to_earth = to_earth_from(name)
        assert to_earth is not None
        np.testing.assert_allclose(to_earth(*xyz[0]), place[0], atol=1e-6)
    with pytest.raises(EdmHlocError, match="no reference system"):
        to_earth_from("WGS84 UTM 61N")


def test_lists_of_control_points(tmp_path: Path) -> None:
    path = tmp_path / "gcp_list.txt"
    path.write_text("EPSG:4326\n8.5 47.5 400 10.5 20 a.jpg p1\n8.5 47.5 400 30 40 b.jpg p1\n")
    fixes, marks = read_control_points(path, to_earth_from)
    assert fixes == {"p1": Fix(47.5, 8.5, 400.0)}
    assert marks == [Mark("p1", "a.jpg", (11.0, 20.5)), Mark("p1", "b.jpg", (30.5, 40.5))]
    for text, message in (
        ("8.5 47.5 400 10 20 a.jpg\n", "first line must name the reference system"),
        ("EPSG:4326\n8.5 47.5 400 10 a.jpg\n", "line 2: expected x y z pixel_x"),
        ("EPSG:4326\n8.5 147.5 400 10 20 a.jpg\n", "line 2: .* they may be swapped"),
        ("EPSG:4326\n8 47 4 1 2 a.jpg p\n8 47 5 1 2 b.jpg p\n", "line 3: the point p was else"),
    ):
        path.write_text(text)
        with pytest.raises(EdmHlocError, match=message):
            read_control_points(path, to_earth_from)
