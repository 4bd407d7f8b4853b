"""Global descriptors: hloc's files, exact search, VLAD."""

from __future__ import annotations

import re
import time
from pathlib import Path
from urllib.error import URLError

import cv2
import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edm_hloc.base import progress
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.cli import main
from edm_hloc.pairs import megaloc, retrieval
from edm_hloc.pairs.descriptors import DescriptorReader, DescriptorWriter, RetrievalImages
from edm_hloc.pairs.local_features import SIFT, LocalFeatures, edm_features
from edm_hloc.pairs.retrieval import (
    RetrievalOptions,
    SimilarPhotos,
    check_retrieval,
    images_in_list,
    images_with_descriptor,
    most_similar,
    select_names,
)
from edm_hloc.pairs.vlad import VladConfig, vlad, vlad_descriptors
from tests.h5_files import write_descriptors

NAMES = [f"db/{k:02d}.jpg" for k in range(23)] + ["query/x/a.jpg", "query/b.jpg"]


@pytest.fixture
def descriptors(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A file as hloc writes it, and what it holds."""
    path = tmp_path / "global-feats-netvlad.h5"
    return path, write_descriptors(path, NAMES)


@pytest.mark.parametrize("block", [1, 5, 100])
def test_search_is_exact_in_blocks_of_any_size(descriptors, block: int, monkeypatch) -> None:
    monkeypatch.setattr(retrieval, "_BLOCK", block)
    path, rows = descriptors
    database = NAMES[:23]
    found = most_similar(path, NAMES[20:], database, 6)
    scores = rows[20:] @ rows[:23].T
    scores[np.arange(3), np.arange(20, 23)] = -np.inf  # never itself
    expected = [(NAMES[20 + i], database[j]) for i in range(5) for j in np.argsort(-scores[i])[:6]]
    assert [(a, b) for a, b, _ in found] == expected
    best = np.sort(scores, axis=1)[:, ::-1][:, :6]
    np.testing.assert_allclose([s for *_, s in found], best.ravel(), rtol=1e-5)
    assert len(most_similar(path, NAMES[-1:], database, 99)) == 23


@pytest.mark.parametrize("block", [1, 100])
def test_similarities_of_two_kinds_of_descriptors_are_added(
    descriptors, block: int, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(retrieval, "_BLOCK", block)
    path, rows = descriptors
    others = np.random.default_rng(1).normal(size=(len(NAMES), 9)).astype(np.float32)
    with DescriptorWriter(tmp_path / "others.h5", {}) as writer:
        for name, row in zip(NAMES, others, strict=True):
            writer.add(name, row)
    shares = {path: 1 / 3, tmp_path / "others.h5": 2 / 3}
    found = most_similar(shares, NAMES[-1:], NAMES[:23], 23)
    expected = (rows[:23] @ rows[-1] + 2 * others[:23] @ others[-1]) / 3
    assert [image for _, image, _ in found] == [NAMES[j] for j in np.argsort(-expected)]
    np.testing.assert_allclose([s for *_, s in found], np.sort(expected)[::-1], atol=1e-5)


@pytest.mark.parametrize("block", [2, 100])
def test_images_whose_descriptor_is_not_finite_are_named(
    descriptors: tuple[Path, np.ndarray],
    block: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(retrieval, "_BLOCK", block)
    path, rows = descriptors
    with h5py.File(path, "r+") as h5:
        for name, value in ((NAMES[1], np.nan), (NAMES[22], np.inf), (NAMES[24], np.nan)):
            h5[name]["global_descriptor"][3] = value
    left = [*range(1), *range(2, 22)]
    found = most_similar(path, NAMES[23:], NAMES[:23], 30)
    assert [image for _, image, _ in found] == [
        NAMES[left[k]] for k in np.argsort(-rows[left] @ rows[23], kind="stable")
    ]
    assert {query for query, *_ in found} == {NAMES[23]}
    named = {name for name in NAMES if name in caplog.text}
    assert named == {NAMES[1], NAMES[22], NAMES[24]}
    words = ["retrieve", str(path), str(path.parent / "out.txt"), "--query-prefix", "query"]
    assert main([*words, "--database-prefix", "db"]) == 0
    assert "out.txt, 21 pairs of 1 (of 2) queries" in capsys.readouterr().out
    words[-1] = NAMES[24]
    assert main([*words, "--database-prefix", "db"]) == 1
    assert "There is no pair of two different images" in capsys.readouterr().err


def test_images_whose_descriptor_is_zero_are_named(
    descriptors: tuple[Path, np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    path, _ = descriptors
    with h5py.File(path, "r+") as h5:
        for name in (NAMES[5], NAMES[24]):
            h5[name]["global_descriptor"][:] = 0
    found = most_similar(path, NAMES[23:], NAMES[:23], 3)
    assert [score for query, _, score in found if query == NAMES[24]] == [0.0] * 3
    assert "all zero" in caplog.text
    assert {name for name in NAMES if name in caplog.text} == {NAMES[5], NAMES[24]}


def test_a_file_without_descriptors_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "features.h5"
    with h5py.File(path, "w") as h5:
        h5["a.jpg/keypoints"] = np.zeros((3, 2))
    assert main(["retrieve", str(path), str(tmp_path / "out.txt")]) == 1
    assert f"{path} holds no global descriptors" in capsys.readouterr().err
    with pytest.raises(EdmHlocError, match="holds no global descriptors"):
        check_retrieval(RetrievalOptions(str(path)), ["a.jpg"], ["a.jpg"])
    (tmp_path / "empty.txt").write_text("# none\n")
    with pytest.raises(EdmHlocError, match=r"empty\.txt is empty: it must hold two names a line"):
        check_retrieval(RetrievalOptions(str(tmp_path / "empty.txt")), ["a.jpg"], ["a.jpg"])


def test_what_the_search_refuses(descriptors, tmp_path: Path) -> None:
    path, _ = descriptors
    with pytest.raises(EdmHlocError, match="no descriptor of 'db/99"):
        most_similar(path, NAMES[-1:], ["db/99.jpg"], 1)
    with pytest.raises(EdmHlocError, match="at least 1"):
        most_similar(path, NAMES[-1:], NAMES[:2], 0)
    with DescriptorWriter(tmp_path / "both.h5", {}) as writer:
        writer.add("a", np.zeros(16))
        writer.add("b", np.zeros(8))
    with pytest.raises(EdmHlocError, match=r"of length 16 in .*both\.h5, the database of 8"):
        most_similar(tmp_path / "both.h5", ["a"], ["b"], 1)
    with pytest.raises(EdmHlocError, match="differ in length"):
        most_similar(tmp_path / "both.h5", ["a"], ["a", "b"], 1)
    assert select_names(NAMES, ["query"]) == NAMES[-2:]
    with pytest.raises(EdmHlocError, match="begins with night"):
        select_names(NAMES, ["night"])


def test_names_are_chosen_by_a_list(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "list.txt"
    path.write_text(
        "# of mine\n\nb.jpg PINHOLE 64 48 5 5 5 5\nIMG 1.jpg PINHOLE 64 48 5 5 5 5\n#2.jpg\nc d\n"
    )
    names = ["#2.jpg", "IMG 1.jpg", "a.jpg", "b.jpg"]
    # what a line begins with is a name too, as of hloc's queries with intrinsics
    assert select_names(names, listed=path) == ["#2.jpg", "IMG 1.jpg", "b.jpg"]
    assert f"{path} names 1 images that are not there, such as 'c d'" in caplog.text
    with pytest.raises(EdmHlocError, match=r"list\.txt names none of the 1 images: .* 'b\.jpg PIN"):
        select_names(["x.jpg"], listed=path)


def test_vlad_in_closed_form() -> None:
    words = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]], np.float32)
    points = np.array([[1, 0], [2, 0], [10, 2], [10, 4]], np.float32)
    # residual sums (3, 0), (0, 6), (0, 0): each of length 1, then the whole
    np.testing.assert_allclose(vlad(points, words), np.array([1, 0, 0, 1, 0, 0]) / np.sqrt(2))
    assert not vlad(points[:0], words).any()


@pytest.mark.parametrize("kind", ["sift", "edm"])
def test_a_changed_copy_is_found_again(kind: str, tmp_path: Path) -> None:
    from edm_hloc.synthetic.painted_textures import dead_leaves

    rng = np.random.default_rng(1)
    paintings = {f"db/{k}.png": dead_leaves(512, rng)[:313, :471] for k in range(5)}
    paintings["query/a.png"] = (0.6 * paintings["db/3.png"][20:300, 30:450]).astype(np.uint8)
    for name, pixels in paintings.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), pixels)
    (tmp_path / "query/bad.png").write_bytes(b"")
    local = SIFT if kind == "sift" else edm_features(None, torch.device("cpu"))
    database = [name for name in paintings if name.startswith("db")]
    out = tmp_path / "global.h5"
    config = VladConfig(words=16)
    queries = ["query/a.png", "query/bad.png"]
    skipped = vlad_descriptors(RetrievalImages(tmp_path, queries, database), out, local, config)
    assert list(skipped) == ["query/bad.png"]
    ((_, image, score),) = most_similar(out, ["query/a.png"], database, 1)
    assert image == "db/3.png"
    assert 0 < score < 1
    with DescriptorReader(out) as reader:
        assert np.linalg.norm(reader.read(reader.names()), axis=1) == pytest.approx(1)


class _Scaled(torch.nn.Module):
    """Stands for MegaLoc: the mean of each channel, times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.factor * images.mean(dim=(2, 3))


def test_megaloc_is_pinned_and_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def load(repository: str, entry: str, **options: object) -> torch.nn.Module:
        assert re.fullmatch(r"gmberton/MegaLoc:[0-9a-f]{40}", repository)  # no moving branch
        assert entry == "MegaLoc"  # the other entry downloads the weights of the day
        asked.append(options)
        return _Scaled()

    def download(url: str, path: str, hash_prefix: str) -> None:
        assert re.fullmatch(r"https://.*/resolve/[0-9a-f]{40}/model\.safetensors", url)
        assert hash_prefix == megaloc.MEGALOC_SHA256
        save_file({"factor": torch.full((1,), 2.0)}, path)

    monkeypatch.setattr(torch.hub, "load", load)
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setenv("EDM_HLOC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(megaloc, "file_sha256", lambda path: megaloc.MEGALOC_SHA256)
    cpu = torch.device("cpu")
    images = RetrievalImages(tmp_path, ["b.png"], ["a.png"])
    cv2.imwrite(str(tmp_path / "a.png"), np.full((30, 40, 3), (0, 127, 255), np.uint8))
    skipped = megaloc.megaloc_descriptors(images, tmp_path / "m.h5", cpu)
    assert list(skipped) == ["b.png"]
    assert [options["trust_repo"] for options in asked] == ["check"]
    with DescriptorReader(tmp_path / "m.h5") as reader:
        red = (np.array([1, 127 / 255, 0]) - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        np.testing.assert_allclose(reader.read(["a.png"])[0], 2 * red, atol=6e-3)


def test_why_megaloc_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDM_HLOC_CACHE", str(tmp_path / "cache"))

    def load(*_: object, **__: object) -> torch.nn.Module:
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def no_network(*_: object, **__: object) -> None:
        raise URLError("no network")

    def refused(message: str) -> None:
        images = RetrievalImages(tmp_path, ["b.png"], ["a.png"])
        with pytest.raises(EdmHlocError, match=message):
            megaloc.megaloc_descriptors(images, tmp_path / "m.h5", torch.device("cpu"))
        assert not (tmp_path / "m.h5").exists()

    monkeypatch.setattr(torch.hub, "load", load)
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    answer: BaseException | torch.nn.Module = URLError("no network")
    refused(r"cannot be loaded .*no network.*take --retrieval sift")
    answer = EOFError()  # nobody is there to answer
    refused(r"answer y, or take --retrieval sift")
    answer = _Scaled()
    refused(r"download the weights of MegaLoc: https.*no network.*put it at .*megaloc\.safetensors")
    (tmp_path / "cache/megaloc.safetensors").write_bytes(b"another file")
    refused(r"megaloc\.safetensors is not the file of MegaLoc's weights")


def test_what_similar_photos_refuse(descriptors: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    path, _ = descriptors
    (tmp_path / "list.txt").write_text("a b\n")
    for names, how, message in (
        (("a",), "edm", "no pair to match"),
        (("a", "b"), "missing.h5", r"No such retrieval file: missing\.h5"),
        (("a", "b"), str(tmp_path / "list.txt"), r"list\.txt is no H5 file.*--pairs"),
        (("a", "b"), str(path), "has no descriptors of these images"),
    ):
        with pytest.raises(EdmHlocError, match=message):
            SimilarPhotos(names, RetrievalOptions(how, 2)).check()


@pytest.mark.parametrize(
    "line",
    [
        "q.jpg s/a.JPG",
        "query/q.jpg db/s/a.JPG",
        "q.jpg, db/S/a.jpg, 0.5",
        "./q database/s/a # best",
    ],
)
def test_lists_with_the_names_people_have(line: str, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text(f"# query image\n{line}\n")
    options = RetrievalOptions(str(path))
    found = images_in_list(options, ["query/q.jpg"], ["database/s/a.JPG", "database/q.jpg"])
    assert found == {"query/q.jpg": ["database/s/a.JPG"]}


@pytest.mark.parametrize(
    ("query", "image"),
    [
        ("q.jpg", "s/a.JPG"),
        ("queries/q.jpg", "db/s/a.JPG"),
        ("query/Q.JPG", "mapping/S/a.jpg"),
        ("q", "s/a"),
        ("images/query/q.jpg", "database/s/a.JPG"),
    ],
)
def test_descriptors_under_the_names_people_have(query: str, image: str, tmp_path: Path) -> None:
    path = tmp_path / "global.h5"
    with DescriptorWriter(path, {}) as writer:
        writer.add(query, np.array([1, 0]))
        writer.add(image, np.array([2, 0]))
        writer.add("db/elsewhere.jpg", np.array([5, 0]))
    queries, database = ["query/q.jpg"], ["database/s/a.JPG", "database/b.jpg"]
    assert images_with_descriptor(path, queries, database) == {"query/q.jpg", "database/s/a.JPG"}
    assert most_similar(path, queries, database[:1], 3) == [("query/q.jpg", "database/s/a.JPG", 2)]


def test_descriptors_that_may_be_of_two_photos_are_of_none(tmp_path: Path) -> None:
    path = tmp_path / "global.h5"
    with DescriptorWriter(path, {}) as writer:
        for name in ("1.jpg", "query/2.jpg", "db/2.jpg", "db/3.jpg", "db/3.JPG", "db/4.jpg"):
            writer.add(name, np.ones(1))
    queries = [f"query/{k}.jpg" for k in (1, 2)]
    database = [f"database/{k}.jpg" for k in (1, 2, 4)] + ["database/3.Jpg"]
    known = images_with_descriptor(path, queries, database)
    assert known == {"query/2.jpg", "database/2.jpg", "database/4.jpg"}
    # one set of photos: the folders' names say nothing
    assert images_with_descriptor(path, ["2.jpg", "4.jpg"], ["4.jpg", "2.jpg"]) == {"4.jpg"}
    with pytest.raises(EdmHlocError, match=r"names are like '1\.jpg', those of the images like 'x"):
        images_with_descriptor(path, ["x.jpg"], ["y.jpg"])


def test_one_name_of_a_query_and_a_database_photo(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("1.jpg 1.jpg\n1.jpg 2.jpg\n2.jpg 1.jpg\n")
    queries, database = ["query/1.jpg", "query/2.jpg"], ["database/1.jpg", "database/2.jpg"]
    found = images_in_list(RetrievalOptions(str(path)), queries, database)
    assert found == {"query/1.jpg": database, "query/2.jpg": database[:1]}


def test_each_step_says_no_more_once_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.05)

    def extract(path: Path) -> np.ndarray:
        time.sleep(0.3)
        return np.random.default_rng(int(path.stem)).normal(size=(20, 8)).astype(np.float32)

    names = [f"{k}.png" for k in range(20)]
    images = RetrievalImages(tmp_path, names, names)
    config = VladConfig(words=4, images=4)
    vlad_descriptors(images, tmp_path / "d.h5", LocalFeatures("own", extract), config, "inputs")
    titles = [line.split(":")[0] for line in capsys.readouterr().err.splitlines()]
    assert {"Vocabulary", "Global descriptors"} == set(titles)
    assert titles == sorted(titles, reverse=True)  # all lines of the first before the second's


def test_the_vocabulary_is_made_of_photos_of_the_whole_list(tmp_path: Path) -> None:
    read: list[int] = []

    def extract(path: Path) -> np.ndarray:
        read.append(int(path.stem))
        return np.eye(8, dtype=np.float32)

    names = [f"{k}.png" for k in range(39)]  # nearly twice as many as are wanted
    images, config = RetrievalImages(tmp_path, names, names), VladConfig(words=2, images=20)
    vlad_descriptors(images, tmp_path / "d.h5", LocalFeatures("own", extract), config)
    assert sorted(read[:20]) == list(range(0, 39, 2))


def test_photos_without_a_keypoint_are_as_similar_as_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    names = ["0.png", "1.png", "2.png"]
    images = RetrievalImages(tmp_path, names, names)
    found = {"0.png": np.zeros((0, 8), np.float32), "2.png": np.ones((40, 8), np.float32)}

    def extract(path: Path) -> np.ndarray:
        return found.get(path.name, found["0.png"])

    def described() -> list[float]:
        vlad_descriptors(images, tmp_path / "d.h5", LocalFeatures("own", extract))
        return [score for *_, score in most_similar(tmp_path / "d.h5", names, names, 2)]

    assert described() == [0.0] * 6  # of forty equal descriptors most words are empty
    assert "by which these images are equally similar to all others: 0.png, 1.png" in caplog.text
    assert "No photo in" not in caplog.text
    found["2.png"] = found["0.png"]
    assert described() == [0.0] * 6
    assert "No photo in" in caplog.text
    assert "has a keypoint (own)" in caplog.text
    assert not recwarn


def test_descriptors_of_photos_that_are_done_are_kept(tmp_path: Path) -> None:
    names = [f"{k}.png" for k in range(12)]
    left, calls = 10**9, 0

    def extract(path: Path) -> np.ndarray:
        nonlocal left, calls
        left, calls = left - 1, calls + 1
        if left < 0:
            raise InterruptedError
        rng = np.random.default_rng(int(path.stem))
        return rng.normal(size=(20 + int(path.stem), 8)).astype(np.float32)

    images, config = RetrievalImages(tmp_path, names[8:], names[:8]), VladConfig(words=4, images=4)

    def run(out: Path) -> bytes:
        vlad_descriptors(images, out, LocalFeatures("own", extract), config, "inputs")
        return out.read_bytes()

    whole = run(tmp_path / "whole.h5")
    assert calls == 12  # each photo once, those of the vocabulary too
    for stop in (2, 7, 11):
        out, left = tmp_path / f"{stop}.h5", stop
        with pytest.raises(InterruptedError):
            run(out)
        assert not out.exists()
        left, calls = 10**9, 0
        assert run(out) == whole
        assert calls <= 16 - stop + 9  # up to 8 were extracted ahead, and one failed
        assert not list(tmp_path.glob(".*.part"))
