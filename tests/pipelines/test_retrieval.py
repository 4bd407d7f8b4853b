"""The retrieval step of a run: its files, its record, and on which network it depends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edm_hloc.base.errors import EdmHlocError, ImageError, WorkLeftError
from edm_hloc.matchers.base import Matcher
from edm_hloc.models.weights import load, weights_sha256
from edm_hloc.models.weights_file import metadata_of
from edm_hloc.pairs.descriptors import DescriptorReader, RetrievalImages
from edm_hloc.pairs.local_features import LocalFeatures
from edm_hloc.pairs.retrieval import (
    BOTH,
    RetrievalOptions,
    SimilarPhotos,
    images_by_query,
    most_similar,
)
from edm_hloc.pairs.vlad import VladConfig
from edm_hloc.pipelines import retrieval
from edm_hloc.pipelines.retrieval import retrieve, similar_pairs
from edm_hloc.pipelines.run import Run
from edm_hloc.pipelines.work_kinds import work_shard
from edm_hloc.pipelines.work_plan import Work, load_work, results_of_workers
from edm_hloc.refinement.load import MatcherRecipe
from tests.h5_files import write_descriptors

NAMES = [f"db/{k:02d}.jpg" for k in range(23)] + ["query/x/a.jpg", "query/b.jpg"]


@pytest.fixture
def descriptors(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A file as hloc writes it, and what it holds."""
    path = tmp_path / "global-feats-netvlad.h5"
    return path, write_descriptors(path, NAMES)


def test_pairs_from_a_file_of_descriptors(descriptors, tmp_path: Path) -> None:
    path, _ = descriptors
    run = Run(tmp_path / "out", {})
    options = RetrievalOptions(str(path), 4)
    found = retrieve(run, options, RetrievalImages(tmp_path, NAMES[-2:], NAMES[:23]))
    expected = images_by_query((a, b) for a, b, _ in most_similar(path, NAMES[-2:], NAMES[:23], 4))
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
    found = retrieve(
        run, RetrievalOptions(str(listed), 2), RetrievalImages(tmp_path, NAMES[-2:], NAMES[:23])
    )
    assert found == {"query/b.jpg": ["db/02.jpg", "db/01.jpg"]}
    assert "1 of 2 queries have no retrieved image and cannot be localized" in caplog.text
    with pytest.raises(EdmHlocError, match="lists none of the 1 queries"):
        retrieve(
            run,
            RetrievalOptions(str(listed), 2),
            RetrievalImages(tmp_path, ["query/z.jpg"], NAMES[:23]),
        )
    listed.write_text("db/02.jpg query/b.jpg\ndb/01.jpg query/b.jpg\n")
    with pytest.raises(EdmHlocError, match="database images in its first column, such as 'db/02"):
        retrieve(
            run, RetrievalOptions(str(listed)), RetrievalImages(tmp_path, NAMES[-2:], NAMES[:23])
        )
    listed.write_text("query/b.jpg db/02.jpg\nquery/b.jpg elsewhere/77.jpg\n")
    caplog.clear()
    retrieve(run, RetrievalOptions(str(listed)), RetrievalImages(tmp_path, NAMES[-2:], NAMES[:23]))
    assert "lists 1 images that are none of the 23 database images, such as 'elsewh" in caplog.text
    with pytest.raises(EdmHlocError, match="No such retrieval file"):
        RetrievalOptions(str(tmp_path / "missing.txt")).check()


def test_few_database_images_are_all_taken(tmp_path: Path) -> None:
    run = Run(tmp_path / "out", {})
    found = retrieve(run, RetrievalOptions("sift", 5), RetrievalImages(tmp_path, ["q"], ["a", "b"]))
    assert found == {"q": ["a", "b"]}
    assert not list(run.out.glob("*.h5"))


def test_a_photo_that_no_kind_of_descriptors_can_read_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def extract(path: Path) -> np.ndarray:
        if path.name == "bad.jpg":
            raise ImageError(f"Cannot read image {path}.")
        return np.eye(8, dtype=np.float32)

    monkeypatch.setattr(retrieval, "SIFT", LocalFeatures("one", extract))
    monkeypatch.setattr(retrieval, "edm_features", lambda *_: LocalFeatures("other", extract))
    monkeypatch.setattr(retrieval, "_unreadable", lambda *_: {})
    for name in ("a.jpg", "b.jpg", "bad.jpg", "c.jpg"):
        (tmp_path / name).touch()
    images = RetrievalImages(tmp_path, ["bad.jpg", "c.jpg"], ["a.jpg", "b.jpg"])
    found = retrieve(Run(tmp_path / "out", {}), RetrievalOptions(BOTH, 1), images)
    assert list(found) == ["c.jpg"]
    assert len(list((tmp_path / "out").glob("global-feats-*.h5"))) == 2
    assert caplog.text.count(f"Skipping a photo: Cannot read image {tmp_path / 'bad.jpg'}.") == 1


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


@pytest.mark.parametrize(
    ("how", "function"), [("megaloc", "megaloc_descriptors"), ("edm", "edm_features")]
)
def test_networks_run_on_the_device_of_the_matcher(
    how: str, function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reached(*arguments: object, **_: object) -> None:
        raise EdmHlocError(f"on {arguments[-1]!r}")

    monkeypatch.setattr(retrieval, function, reached)
    matcher = SimpleNamespace(info=SimpleNamespace(device=torch.device("meta"), weights="none"))
    images = RetrievalImages(tmp_path, NAMES[-2:], NAMES[:5])
    with pytest.raises(EdmHlocError, match=r"on device.*meta"):
        retrieve(Run(tmp_path / "out", {}), RetrievalOptions(how, 2), images, matcher)


def test_similar_photos_are_found_by_both_kinds_of_descriptors(tmp_path: Path) -> None:
    """By default; both files stay, and the similarity is made of both."""
    rng = np.random.default_rng(0)
    names = tuple(f"{k}.png" for k in range(5))
    for name in names:
        coarse = rng.integers(0, 255, (16, 16), np.uint8)
        cv2.imwrite(str(tmp_path / name), cv2.resize(coarse, (128, 128)))
    options = RetrievalOptions(BOTH, 1, VladConfig(words=4))
    run = Run(tmp_path / "out", {})
    similar_pairs(run, SimilarPhotos(names, options), tmp_path)
    products = {}
    for kind in ("edm", "sift"):
        with DescriptorReader(run.out / f"global-feats-{kind}.h5") as reader:
            rows = reader.read(names)
        assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-4)
        products[kind] = rows @ rows.T
    both = (products["edm"] + 2 * products["sift"]) / 3 - 9 * np.eye(5)
    scored = (run.out / "scores-edm+sift1.txt").read_text().splitlines()
    for i, line in enumerate(scored):
        name, other, score = line.split()
        assert (name, other) == (names[i], names[both[i].argmax()])
        assert float(score) == pytest.approx(both[i].max(), abs=1e-4)
    assert set(run.done) == {"descriptors of edm", "descriptors of sift"}


def other_weights(path: Path) -> Path:
    """A copy of the default weights with another first layer."""
    model, _ = load()
    with torch.no_grad():
        model.backbone.conv1.weight.mul_(-0.5)
    save_file(model.state_dict(), path, metadata_of(model.config, 0.2, "centre"))
    return path


def test_descriptors_of_edm_are_of_the_weights_of_the_matcher(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = [f"{k}.png" for k in range(4)]
    for name in names:
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 255, (64, 64), np.uint8))
    photos = SimilarPhotos(tuple(names), RetrievalOptions("edm", 1, VladConfig(words=4)))
    run = Run(tmp_path / "out", {})
    file = run.out / "global-feats-edm.h5"

    def descriptors_by(matcher: Matcher | None) -> tuple[str, np.ndarray, int]:
        similar_pairs(run, photos, tmp_path, matcher)
        with DescriptorReader(file) as reader:
            return reader.provenance["of"], reader.read(names), file.stat().st_mtime_ns

    _, weights = load(other_weights(tmp_path / "other.safetensors"))
    matcher = SimpleNamespace(
        info=SimpleNamespace(device=torch.device("cpu"), weights=weights), recipe=None
    )
    default_sha256, by_default, _ = descriptors_by(None)
    other_sha256, by_others, made = descriptors_by(matcher)
    assert default_sha256 == weights_sha256()
    assert other_sha256 == weights.sha256 == weights_sha256(weights.path) != default_sha256
    assert np.abs(by_others - by_default).max() > 0.01
    assert descriptors_by(matcher)[2] == made  # the same weights: nothing is computed again
    both = replace(photos, options=replace(photos.options, how=BOTH))
    similar_pairs(run, both, tmp_path, None)  # writes the same file, of the default weights
    assert np.array_equal(descriptors_by(matcher)[1], by_others)
    of_none = SimpleNamespace(
        info=SimpleNamespace(device=torch.device("cpu"), weights="LoFTR's"), recipe=None
    )
    assert descriptors_by(of_none)[0] == default_sha256


@pytest.mark.parametrize(("matcher", "how"), [("edm", "edm"), ("loftr", "edm"), ("loftr", "sift")])
def test_workers_describe_by_the_weights_of_edm_only(
    matcher: str, how: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    names = [f"{k}.png" for k in range(4)]
    for name in names:
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 255, (64, 64), np.uint8))
    if matcher == "edm":
        path = other_weights(tmp_path / "other.safetensors")
        used = load(path)[1]
    else:
        path, used = tmp_path / "outdoor.ckpt", str(tmp_path / "outdoor.ckpt")
        torch.save({"state_dict": {}}, path)
    made = SimpleNamespace(
        info=SimpleNamespace(device=torch.device("cpu"), weights=used),
        recipe=MatcherRecipe(matcher, weights=str(path)),
    )
    photos = SimilarPhotos(tuple(names), RetrievalOptions(how, 1, VladConfig(words=4)))
    run = Run(tmp_path / "out", {})
    run.shards = 2
    with pytest.raises(WorkLeftError):
        similar_pairs(run, photos, tmp_path, made)
    for shard in (1, 2):
        work_shard(load_work(run.out), shard, torch.device("cpu"))
    similar_pairs(run, photos, tmp_path, made)
    with DescriptorReader(run.out / f"global-feats-{how}.h5") as reader:
        edm = used.sha256 if matcher == "edm" else weights_sha256()
        assert reader.provenance["of"] == (edm if how == "edm" else "sift")


@pytest.mark.parametrize("given", [True, False])
def test_workers_with_other_weights_of_edm_say_where_to_put_them(
    given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = other_weights(tmp_path / "other.safetensors")
    (tmp_path / "0.png").write_bytes(b"a photo that the worker sees")
    shared = {"how": "edm", "sha256": "that of another file", "words": [], "root": str(tmp_path)}
    if given:
        shared["weights"] = str(path)
    else:
        monkeypatch.setenv("EDM_HLOC_WEIGHTS", str(path))
    with pytest.raises(WorkLeftError):
        list(results_of_workers(tmp_path, Work("descriptors", "", shared, [[["0.png"]]])))
    remedy = str(path) if given else r"a path that \$EDM_HLOC_WEIGHTS here holds"
    with pytest.raises(EdmHlocError, match=f"put the same file at {remedy}"):
        work_shard(load_work(tmp_path), 1, torch.device("cpu"))
