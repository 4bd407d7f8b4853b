"""Lists of pairs: by rule, from files with awkward names, from models with known answers."""

from __future__ import annotations

import itertools
import logging
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edm_hloc.base.colmap import read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.pairs import covisibility
from edm_hloc.pairs.covisibility import from_cameras, from_covisibility, from_model
from edm_hloc.pairs.files import from_file, read_names, read_pairs, write_pairs
from edm_hloc.pairs.rules import Pair, exhaustive, in_natural_order, sequential, unique_pairs
from edm_hloc.pairs.selection import PairSelection, select_pairs

NAMES = [f"{i}.jpg" for i in range(7)]
file_names = st.text(
    st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=8
).map(lambda text: f"{text}.jpg")


def undirected(pairs: list[tuple[str, str]]) -> set[frozenset[str]]:
    return {frozenset(pair) for pair in pairs}


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES))))
def test_unique_pairs_keep_order_and_first_direction(pairs: list[tuple[str, str]]) -> None:
    found = unique_pairs(pairs)
    assert undirected(found) == {frozenset(p) for p in pairs if p[0] != p[1]}
    assert len(undirected(found)) == len(found)
    places = [pairs.index(pair) for pair in found]
    assert places == sorted(places)
    assert all((b, a) not in pairs[:place] for place, (a, b) in zip(places, found, strict=True))


def test_exhaustive() -> None:
    pairs = exhaustive([*NAMES, NAMES[0]])
    assert len(pairs) == len(undirected(pairs)) == 7 * 6 // 2
    assert exhaustive(["b", "a", "c"]) == [("b", "a"), ("b", "c"), ("a", "c")]


def test_sequential_golden() -> None:
    assert sequential(["a", "b", "c", "d"], overlap=2) == [
        ("a", "b"), ("a", "c"), ("b", "c"), ("b", "d"), ("c", "d"),
    ]  # fmt: skip
    # 0, 3 and 6 are the loop images; nothing is there twice
    looped = sequential(NAMES, overlap=1, loop_step=3)
    chain = {frozenset(NAMES[i : i + 2]) for i in range(6)}
    loop = {frozenset((NAMES[a], NAMES[b])) for a, b in ((0, 3), (0, 6), (3, 6))}
    assert undirected(looped) == chain | loop
    assert len(looped) == 9
    assert undirected(sequential(NAMES, 99)) == undirected(exhaustive(NAMES))


@pytest.mark.parametrize(("overlap", "step"), [(0, None), (1, 0), (-1, 2)])
def test_sequential_refuses_nonsense(overlap: int, step: int | None) -> None:
    with pytest.raises(EdmHlocError, match="at least 1"):
        sequential(NAMES, overlap, step)


@settings(max_examples=60)
@given(st.lists(st.tuples(file_names, file_names), min_size=1))
def test_any_names_survive_a_file(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("pairs") / "pairs.txt"
    write_pairs(path, pairs)
    assert read_pairs(path) == pairs


def test_files_are_those_of_hloc(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "pairs.txt"
    write_pairs(path, [("db/1.jpg", "query/é.jpg"), ("a b.jpg", "c.jpg")])
    assert path.read_bytes() == "db/1.jpg query/é.jpg\na b.jpg\tc.jpg\n".encode()
    assert [p.name for p in path.parent.iterdir()] == ["pairs.txt"]
    with pytest.raises(EdmHlocError, match="rename"):
        write_pairs(path, [("a\tb.jpg", "c.jpg")])


def test_file_with_spaces_windows_line_ends_and_repeats(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_bytes("\ufeffa.jpg  b.jpg\r\n\r\nb.jpg a.jpg\r\na.jpg a.jpg\r\n".encode())
    assert from_file(path, ["a.jpg", "b.jpg"]) == [("a.jpg", "b.jpg")]
    path.write_text("my photo 1.jpg my photo 2.jpg\na.jpg\t my photo 1.jpg\n")
    names = ["my photo 1.jpg", "my photo 2.jpg", "a.jpg"]
    assert from_file(path, names) == [(names[0], names[1]), (names[2], names[0])]
    with pytest.raises(EdmHlocError, match=r"pairs\.txt, line 1: expected two image names"):
        read_pairs(path)
    path.write_text("x y z\n")  # "x" + "y z" or "x y" + "z"?
    with pytest.raises(EdmHlocError, match="tab"):
        from_file(path, ["x", "y z", "x y", "z"])


@pytest.mark.parametrize("code", ["utf-16", "utf-16-be", "utf-8-sig"])
def test_tables_saved_on_windows(code: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    mark = "\ufeff" if code == "utf-16-be" else ""
    path.write_bytes(f"{mark}image1;image2\r\né.jpg;b.jpg\r\n".encode(code))
    assert from_file(path, ["é.jpg", "b.jpg"]) == [("é.jpg", "b.jpg")]


def test_unknown_names_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text("0.jpg 1.jpg\n0.jpg nowhere.jpg\n")
    with caplog.at_level(logging.WARNING):
        assert from_file(path, NAMES) == [("0.jpg", "1.jpg")]
    assert "1 pairs left out" in caplog.text
    assert "nowhere.jpg" in caplog.text
    with pytest.raises(EdmHlocError, match="no pair of the images"):
        from_file(path, ["x.jpg"])
    for text, said in (("\n# a b\n", "is empty: it must"), ("0.jpg 0.jpg\n", "two different im")):
        path.write_text(text)
        with pytest.raises(EdmHlocError, match=rf"{path} .*{said}"):
            from_file(path, NAMES)
    with pytest.raises(EdmHlocError, match=r"missing\.txt"):
        read_pairs(tmp_path / "missing.txt")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EdmHlocError, match="Cannot read"):
        read_pairs(path)


@pytest.mark.parametrize(
    "line",
    [
        "a.JPG sub/b.png # the two best",
        "./a.JPG   ./sub//b.png",
        "a.JPG,sub/b.png",
        "a.JPG, sub/b.png, 0.87",
        '"a.JPG";"sub/b.png"',
        "a.JPG sub/b.png 0.87",
        "a.JPG\tsub\\b.png\t1e-3",
        "a.jpg SUB/b.PNG",
        "a sub/b",
        "images/a.JPG images/sub/b.png",
        "a.JPG b.png",
    ],
)
def test_lists_of_other_programs(line: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text(f"# image0 image1\n#a\n{line}\n  # end\n")
    assert from_file(path, ["a.JPG", "sub/b.png", "c.jpg"]) == [("a.JPG", "sub/b.png")]


@pytest.mark.parametrize(
    "text",
    [
        "image1;image2;score\na.JPG;sub/b.png;0.5",
        "image1,image2\na.JPG,sub/b.png",
        "query_name\tdb_name\trank\na.JPG\tsub/b.png\t1",
        ",image1,image2,score\n0,a.JPG,sub/b.png,0.5",  # pandas writes the rows' numbers
        "img1;img2;s\na.JPG;sub/b.png;0,53",  # a comma as the decimal point
        '"Image A" "Image B"\n"a.JPG" "sub/b.png"',
        "a.JPG|sub/b.png",
        "a.JPG;sub/b.png;good",
        "a.JPG sub/b.png 0 0 500.5 0 320 0 500 240 0 0 1",  # SuperGlue's lists with intrinsics
        "a.JPG,sub/b.png,",
    ],
)
def test_headings_and_separators(text: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(text + "\n")
    assert from_file(path, ["a.JPG", "sub/b.png", "c.jpg"]) == [("a.JPG", "sub/b.png")]


def test_names_with_separators_in_them(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    names = ["7", "a.jpg", "my photo.jpg", "one, two.jpg"]
    path.write_text('"a.jpg","one, two.jpg",0.5\na.jpg;my photo.jpg;1\n7 a.jpg 0.3\n7,a.jpg,1\n')
    assert from_file(path, names) == [
        *[("a.jpg", "one, two.jpg"), ("a.jpg", "my photo.jpg"), ("7", "a.jpg")]
    ]
    path.write_text("a.jpg;x.jpg;y.jpg\n")
    with pytest.raises(EdmHlocError, match=r"pairs\.csv, line 1: expected two image names"):
        from_file(path, names)


def test_names_that_fit_several_images_are_not_guessed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "pairs.txt"
    names = ["1.jpg", "1.png", "l/x.jpg", "r/x.jpg", "A.jpg", "a.jpg", "#1.jpg", "one, two.jpg"]
    path.write_text(
        "a.jpg A.jpg\n1 a.jpg\nx.jpg a.jpg\n#1.jpg one, two.jpg\nl/x.png a.jpg\nA.JPG 1.png\n"
    )
    with caplog.at_level(logging.WARNING):
        assert from_file(path, names) == [("a.jpg", "A.jpg"), ("#1.jpg", "one, two.jpg")]
    assert "3 names fit several images" in caplog.text
    assert "4 pairs left out" in caplog.text
    caplog.clear()
    path.write_text("a b.jpg\n")
    assert from_file(path, ["A.jpg", "b.jpg"]) == [("A.jpg", "b.jpg")]
    assert "'a' was taken for 'A.jpg'" in caplog.text  # a likely wrong result is said


def test_a_line_of_any_length_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text("word " * 200_000)
    tracemalloc.start()
    with pytest.raises(EdmHlocError, match="line 1: expected two image names"):
        from_file(path, NAMES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6


# --------------------------------------------------------------------------- models


def write_model(
    folder: Path,
    centres: np.ndarray,
    turns: np.ndarray,
    tracks: list[list[int]] | None = None,
    names: list[str] | None = None,
) -> Path:
    """Cameras at `centres` turned about y by `turns` degrees, and one point for each track."""
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera.create_from_model_name(1, "SIMPLE_PINHOLE", 500, 640, 480)
    model.add_camera_with_trivial_rig(camera)
    tracks = tracks or []
    for i, (centre, turn) in enumerate(zip(centres, turns, strict=True)):
        angle = np.deg2rad(turn)
        rotation = np.array(
            [[np.cos(angle), 0, -np.sin(angle)], [0, 1, 0], [np.sin(angle), 0, np.cos(angle)]]
        )
        image = pycolmap.Image(
            name=names[i] if names else f"{i}.jpg",
            keypoints=np.zeros((sum(t.count(i) for t in tracks), 2)),
            camera_id=1,
            image_id=i + 1,
        )
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(rotation), -rotation @ centre)
        model.add_image_with_trivial_frame(image, pose)
    used = [0] * len(centres)
    for track in tracks:
        elements = pycolmap.Track()
        for i in track:
            elements.add_element(i + 1, used[i])
            used[i] += 1
        model.add_point3D(np.zeros(3), elements)
    folder.mkdir(parents=True)
    model.write_text(folder)
    return folder


def test_covisibility_golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # shared points: 0–1 three, 0–2 two, 1–2 one, 2–3 one, 4 none; one track meets image 3 twice
    tracks = [[0, 1], [0, 1], [0, 1, 2], [0, 2], [2, 3, 3]]
    model = write_model(tmp_path / "m", np.eye(5, 3), np.zeros(5), tracks)
    # image 2 prefers 0; of 1 and 3, which share as much with it, the first
    assert from_covisibility(model, 1) == [
        ("0.jpg", "1.jpg"),
        ("2.jpg", "0.jpg"),
        ("3.jpg", "2.jpg"),
    ]
    assert from_covisibility(model, 99) == [
        ("0.jpg", "1.jpg"), ("0.jpg", "2.jpg"), ("1.jpg", "2.jpg"), ("2.jpg", "3.jpg"),
    ]  # fmt: skip
    expected = from_covisibility(model, 1)
    reads = []
    monkeypatch.setattr(
        covisibility, "read_model", lambda path: reads.append(path) or read_model(path)
    )
    assert from_model(model, 1) == expected
    assert reads == [model]
    with pytest.raises(EdmHlocError, match="at least 1"):
        from_covisibility(model, 0)


def test_covisibility_equals_plain_counting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "edm_hloc.pairs.covisibility._BLOCK", 5
    )  # several blocks, the last one short
    rng = np.random.default_rng(0)
    tracks = [list(map(int, rng.choice(23, rng.integers(2, 6), replace=False))) for _ in range(200)]
    model = write_model(tmp_path / "m", rng.normal(size=(23, 3)), np.zeros(23), tracks)
    count = np.zeros((23, 23), int)
    for track in tracks:
        for a in track:
            for b in track:
                count[a, b] += a != b
    expected = set()
    order = sorted(range(23), key=str)  # names are sorted as text
    for a in order:
        ranked = sorted((b for b in order if count[a, b]), key=lambda b: -count[a, b])
        least = count[a, ranked[3]]
        expected |= {frozenset((a, b)) for b in ranked if count[a, b] > least}
    found = {frozenset(int(n[:-4]) for n in pair) for pair in from_covisibility(model, 4)}
    assert expected <= found  # ties at the fourth place may go either way
    assert all(count[tuple(pair)] > 0 for pair in found)
    assert len(found) <= 23 * 4


def by_poses(model: Path, number: int, max_rotation: float = 30.0) -> list[Pair]:
    return from_cameras(read_model(model), model, number, max_rotation)


def test_poses_golden(tmp_path: Path) -> None:
    # on a line 0, 1, 2, 4, 8; camera 1 looks away
    centres = np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0], [4, 0, 0], [8, 0, 0]], float)
    model = write_model(tmp_path / "m", centres + 1e6, np.array([0, 90, 10, 20, 45.0]))
    assert by_poses(model, 1, max_rotation=30) == [
        ("0.jpg", "2.jpg"), ("3.jpg", "2.jpg"), ("4.jpg", "3.jpg"),
    ]  # fmt: skip
    assert undirected(by_poses(model, 9, max_rotation=25)) == undirected(
        [("0.jpg", "2.jpg"), ("0.jpg", "3.jpg"), ("2.jpg", "3.jpg"), ("3.jpg", "4.jpg")]
    )
    assert len(by_poses(model, 9, max_rotation=180)) == 10
    assert from_model(model, 1) == by_poses(model, 1)
    with pytest.raises(EdmHlocError, match="larger rotation"):
        by_poses(model, 3, max_rotation=1)


def test_poses_equal_plain_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edm_hloc.pairs.covisibility._BLOCK", 4)
    rng = np.random.default_rng(1)
    centres, turns = rng.normal(size=(13, 3)), rng.uniform(0, 90, 13)
    names = [f"{i:02}.jpg" for i in range(13)]
    model = write_model(tmp_path / "m", centres, turns, names=names)
    expected = []
    for i in range(13):
        near = [j for j in range(13) if j != i and abs(turns[i] - turns[j]) <= 30]
        near.sort(key=lambda j: np.linalg.norm(centres[i] - centres[j]))
        expected += [(names[i], names[j]) for j in near[:3]]
    assert by_poses(model, 3) == unique_pairs(expected)


def test_models_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(EdmHlocError, match="No COLMAP model in"):
        from_covisibility(tmp_path, 3)
    model = write_model(tmp_path / "0", np.eye(3), np.zeros(3))
    with pytest.raises(EdmHlocError, match=r"Did you mean .*0\?"):
        from_model(tmp_path, 3)
    write_model(tmp_path / "1", np.eye(9, 3), np.zeros(9))  # as COLMAP may number a larger one
    with pytest.raises(EdmHlocError, match=r"Did you mean .*1\?"):
        from_model(tmp_path, 3)
    with pytest.raises(EdmHlocError, match="poses instead"):
        from_covisibility(model, 3)
    (model / "images.txt").write_text("1 2 3\n")
    with pytest.raises(
        EdmHlocError, match=r"images\.txt, line 1: expected IMAGE_ID .*found '1 2 3'"
    ):
        from_model(model, 3)


def test_exhaustive_pairs_of_too_many_photos_are_refused_at_once() -> None:
    names = [f"{i}.jpg" for i in range(20_000)]
    tracemalloc.start()
    try:
        with pytest.raises(EdmHlocError, match=r"20,000 photos are 199,990,000.*--pairs retrieval"):
            exhaustive(names)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_sequential_pairs_are_in_natural_order() -> None:
    names = [f"walk/frame_{i}.jpg" for i in range(1, 121)]
    pairs = select_pairs(
        Path(),
        PairSelection("sequential", overlap=1).photos(sorted(names)),
        PairSelection("sequential", overlap=1),
    )
    assert pairs == list(itertools.pairwise(names))


@given(st.lists(st.integers(0, 10**12), unique=True))
def test_natural_order_is_that_of_the_numbers(numbers: list[int]) -> None:
    assert in_natural_order(f"a{n}.jpg" for n in numbers) == [f"a{n}.jpg" for n in sorted(numbers)]
    padded = [f"b-{n:013d}_left.jpg" for n in numbers]
    assert in_natural_order(padded) == sorted(padded)


def test_natural_order_has_a_place_for_every_name() -> None:
    names = ["1/2.jpg", "1/10.jpg", "01/1.jpg", "10/1.jpg", "2/1.jpg", "a.jpg", "a0.jpg", "a00.jpg"]
    assert in_natural_order(reversed(names)) == [
        *("01/1.jpg", "1/2.jpg", "1/10.jpg", "2/1.jpg", "10/1.jpg"),
        *("a.jpg", "a0.jpg", "a00.jpg"),
    ]


def test_a_list_of_images_chooses_and_orders(tmp_path: Path) -> None:
    path = tmp_path / "images.txt"
    path.write_text("# in this order\n5.jpg\n./0.jpg\n\n5.jpg\n3\n")
    assert read_names(path, NAMES) == ["5.jpg", "0.jpg", "3.jpg"]
    selection = PairSelection("sequential", overlap=1, image_list=path)
    assert selection.photos(NAMES) == ["5.jpg", "0.jpg", "3.jpg"]
    assert PairSelection(image_list=path).photos(NAMES) == ["5.jpg", "0.jpg", "3.jpg"]
    path.write_text("filename\n5.jpg\n")
    assert read_names(path, NAMES) == ["5.jpg"]
    path.write_text("5.jpg\n77.jpg\n")
    with pytest.raises(EdmHlocError, match=r"images\.txt, line 2: there is no image '77\.jpg'"):
        read_names(path, NAMES)
    path.write_text("\n# nothing\n")
    with pytest.raises(EdmHlocError, match=r"images\.txt is empty"):
        read_names(path, NAMES)


def test_lines_of_a_hundred_thousand_words_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("0.jpg 1.jpg\n" + "word " * 100_000 + "\n")
    started = time.monotonic()
    for read in (from_file, read_names):
        with pytest.raises(EdmHlocError, match=r"list\.txt, line [12]") as error:
            read(path, NAMES)
        assert len(str(error.value)) < 600 + len(str(path))
    assert time.monotonic() - started < 2
