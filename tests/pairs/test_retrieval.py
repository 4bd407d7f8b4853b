"""Global descriptors: hloc's files, exact search, VLAD."""

from __future__ import annotations

from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.pairs import from_retrieval as pairs_from_retrieval
from edm_hloc.pairs import retrieval
from edm_hloc.pairs.descriptors import DescriptorReader, DescriptorWriter
from edm_hloc.pairs.from_retrieval import (
    RetrievalOptions,
    SimilarPhotos,
    retrieve,
    similar_pairs,
)
from edm_hloc.pairs.retrieval import (
    VladConfig,
    compute_descriptors,
    edm_features,
    hub_descriptors,
    most_similar,
    retrieved,
    select_names,
    sift_features,
    vlad,
)
from edm_hloc.pipelines.run import Run

NAMES = [f"db/{k:02d}.jpg" for k in range(23)] + ["query/x/a.jpg", "query/b.jpg"]


@pytest.fixture
def descriptors(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A file as hloc writes it, in half precision, and what it holds."""
    rows = np.random.default_rng(0).normal(size=(len(NAMES), 16)).astype(np.float16)
    with h5py.File(tmp_path / "global-feats-netvlad.h5", "w") as h5:
        for name, row in zip(NAMES, rows, strict=True):
            group = h5.create_group(name)
            group.create_dataset("global_descriptor", data=row)
            group.create_dataset("image_size", data=[640, 480])
    return tmp_path / "global-feats-netvlad.h5", rows.astype(np.float32)


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
    assert select_names(NAMES, listed=["db/03.jpg", "elsewhere"]) == ["db/03.jpg"]
    with pytest.raises(EdmHlocError, match="begins with night"):
        select_names(NAMES, ["night"])


def test_pairs_from_a_file_of_descriptors(descriptors, tmp_path: Path) -> None:
    path, _ = descriptors
    run = Run(tmp_path / "out", {})
    options = RetrievalOptions(str(path), 4)
    found = retrieve(run, options, tmp_path, NAMES[-2:], NAMES[:23])
    expected = retrieved((a, b) for a, b, _ in most_similar(path, NAMES[-2:], NAMES[:23], 4))
    assert found == expected
    written = (run.out / "pairs-query-netvlad4.txt").read_text().splitlines()
    assert written[0] == f"query/x/a.jpg {expected['query/x/a.jpg'][0]}"
    assert len(written) == 8
    scored = (run.out / "scores-query-netvlad4.txt").read_text().splitlines()
    assert [line.rsplit(" ", 1)[0] for line in scored] == written


def test_pairs_from_hlocs_list(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    listed = tmp_path / "pairs-query-netvlad50.txt"  # hloc ends it without a line break
    listed.write_text("query/b.jpg db/02.jpg\nquery/b.jpg db/01.jpg\nquery/b.jpg db/02.jpg")
    run = Run(tmp_path / "out", {})
    found = retrieve(run, RetrievalOptions(str(listed), 2), tmp_path, NAMES[-2:], NAMES[:23])
    assert found == {"query/b.jpg": ["db/02.jpg", "db/01.jpg"]}
    assert "1 of 2 queries have no retrieved image and cannot be localized" in caplog.text
    with pytest.raises(EdmHlocError, match="lists none of the 1 queries"):
        retrieve(run, RetrievalOptions(str(listed), 2), tmp_path, ["query/z.jpg"], NAMES[:23])
    with pytest.raises(EdmHlocError, match="No such retrieval file"):
        RetrievalOptions(str(tmp_path / "missing.txt")).check()


def test_few_database_images_are_all_taken(tmp_path: Path) -> None:
    run = Run(tmp_path / "out", {})
    found = retrieve(run, RetrievalOptions("sift", 5), tmp_path, ["q"], ["a", "b"])
    assert found == {"q": ["a", "b"]}
    assert not list(run.out.glob("*.h5"))


def test_vlad_in_closed_form() -> None:
    words = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]], np.float32)
    points = np.array([[1, 0], [2, 0], [10, 2], [10, 4]], np.float32)
    # residual sums (3, 0), (0, 6), (0, 0): each of length 1, then the whole
    np.testing.assert_allclose(vlad(points, words), np.array([1, 0, 0, 1, 0, 0]) / np.sqrt(2))
    assert not vlad(points[:0], words).any()


@pytest.mark.parametrize("kind", ["sift", "edm"])
def test_a_changed_copy_is_found_again(kind: str, tmp_path: Path) -> None:
    from edm_hloc.synthetic.textures import dead_leaves

    rng = np.random.default_rng(1)
    paintings = {f"db/{k}.png": dead_leaves(512, rng)[:313, :471] for k in range(5)}
    paintings["query/a.png"] = (0.6 * paintings["db/3.png"][20:300, 30:450]).astype(np.uint8)
    for name, pixels in paintings.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), pixels)
    (tmp_path / "query/bad.png").write_bytes(b"")
    local = sift_features if kind == "sift" else edm_features(torch.device("cpu"))[0]
    database = [name for name in paintings if name.startswith("db")]
    out = tmp_path / "global.h5"
    config = VladConfig(words=16)
    queries = ["query/a.png", "query/bad.png"]
    skipped = compute_descriptors(tmp_path, database, queries, out, local, config)
    assert list(skipped) == ["query/bad.png"]
    ((_, image, score),) = most_similar(out, ["query/a.png"], database, 1)
    assert image == "db/3.png"
    assert 0 < score < 1
    with DescriptorReader(out) as reader:
        assert np.linalg.norm(reader.read(reader.names()), axis=1) == pytest.approx(1)


def test_a_network_from_torch_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = torch.nn.Sequential(torch.nn.AvgPool2d(322), torch.nn.Flatten())
    monkeypatch.setattr(torch.hub, "load", lambda *_, **__: network)
    cpu = torch.device("cpu")
    cv2.imwrite(str(tmp_path / "a.png"), np.full((30, 40, 3), (0, 127, 255), np.uint8))
    skipped = hub_descriptors(tmp_path, ["a.png", "b.png"], tmp_path / "m.h5", cpu)
    assert list(skipped) == ["b.png"]
    with DescriptorReader(tmp_path / "m.h5") as reader:
        red = (np.array([1, 127 / 255, 0]) - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        np.testing.assert_allclose(reader.read(["a.png"])[0], red, atol=3e-3)

    def no_network(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load", no_network)
    with pytest.raises(EdmHlocError, match=r"MegaLoc cannot be loaded .*no network"):
        hub_descriptors(tmp_path, ["a.png"], tmp_path / "m.h5", cpu)


def test_pairs_of_photos_that_look_alike(
    descriptors: tuple[Path, np.ndarray], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, rows = descriptors
    unknown = "db/99.jpg"
    photos = SimilarPhotos((*NAMES, unknown), RetrievalOptions(str(path), 3))
    photos.check()
    found = similar_pairs(Run(tmp_path, {}), photos, tmp_path)
    scores = rows @ rows.T
    np.fill_diagonal(scores, -np.inf)
    nearest = np.argsort(-scores, axis=1)[:, :3]
    expected = {frozenset((NAMES[i], NAMES[j])) for i, row in enumerate(nearest) for j in row}
    # the one that nothing is known of, with those before it
    expected |= {frozenset((unknown, name)) for name in NAMES[-2:]}
    assert {frozenset(pair) for pair in found} == expected
    assert len(found) == len(expected)
    assert f"1 photos have no global descriptor, such as {unknown}" in caplog.text
    scored = (tmp_path / "scores-netvlad3.txt").read_text().splitlines()
    assert scored[0].split()[:2] == [NAMES[0], NAMES[nearest[0, 0]]]


def test_all_pairs_of_few_photos(tmp_path: Path) -> None:
    photos = SimilarPhotos(("a", "b", "c"), RetrievalOptions("edm", 2))
    found = similar_pairs(Run(tmp_path, {}), photos, tmp_path / "nowhere")
    assert found == [("a", "b"), ("a", "c"), ("b", "c")]


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


@pytest.mark.parametrize("how", ["megaloc", "edm"])
def test_networks_run_on_the_device_asked_for(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reached(*arguments: object) -> None:
        raise EdmHlocError(f"on {arguments[-1]!r}")

    monkeypatch.setattr(pairs_from_retrieval, "hub_descriptors", reached)
    monkeypatch.setattr(retrieval, "load_weights", reached)
    run = Run(tmp_path / "out", {})
    with pytest.raises(EdmHlocError, match=r"on device.*meta"):
        retrieve(run, RetrievalOptions(how, 2), tmp_path, NAMES[-2:], NAMES[:5], "meta")
