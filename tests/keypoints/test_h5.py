"""Feature and match files: round trips, hloc's formats, whole or not there at all."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.h5 import pair_key
from edm_hloc.keypoints.h5 import FeatureReader, FeatureWriter, MatchReader, MatchWriter
from tests.h5_files import (
    PROVENANCE,
    files,
    image_names,
    posix_only,
    with_files,
)


def test_pair_key_is_hlocs() -> None:
    assert pair_key("db/1.jpg", "query/night/nexus 5.jpg") == "db-1.jpg/query-night-nexus 5.jpg"


def test_features_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "features.h5"
    keypoints = np.array([[0, 0], [1.5, 2.25], [4031.5, -0.5]])
    with FeatureWriter(path, PROVENANCE) as writer:
        writer.add("a", keypoints, np.array([1, 2, 3]), uncertainty=0.5)
        writer.add("a/b c-d.jpg", keypoints[:1], np.array([7.0]))
        writer.add("a/ünïcødé/日本.png", np.zeros((0, 2)), np.zeros(0))
        assert not path.exists()
    assert files(path.parent) == {"features.h5"}
    with FeatureReader(path) as reader:
        assert reader.names() == ["a", "a/b c-d.jpg", "a/ünïcødé/日本.png"]
        np.testing.assert_array_equal(reader.keypoints("a"), keypoints)
        np.testing.assert_array_equal(reader.scores("a"), [1, 2, 3])
        assert reader.keypoints("a").dtype == np.float32
        assert reader.uncertainty("a") == 0.5
        assert reader.uncertainty("a/b c-d.jpg") is None
        assert reader.keypoints("a/ünïcødé/日本.png").shape == (0, 2)
        assert reader.provenance == PROVENANCE
        assert "a/b c-d.jpg" in reader
        assert "a/ünïcødé" not in reader
        with pytest.raises(EdmHlocError, match=r"'b\.jpg'.*features\.h5"):
            reader.keypoints("b.jpg")


def test_features_are_what_hloc_expects(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    with FeatureWriter(path, PROVENANCE) as writer:
        writer.add("db/1.jpg", np.ones((2, 2)), np.ones(2), uncertainty=1.25)
    with h5py.File(path, "r", libver="latest") as h5:
        # hloc takes the parent of each data set for the name of an image
        parents = set()
        h5.visititems(
            lambda _, item: (
                parents.add(item.parent.name) if isinstance(item, h5py.Dataset) else None
            )
        )
        assert parents == {"/db/1.jpg"}
        dataset = h5["db/1.jpg"]["keypoints"]
        assert dataset.shape == (2, 2)
        assert dataset.attrs["uncertainty"] == 1.25
        assert h5["db/1.jpg/scores"].shape == (2,)
    with h5py.File(path, "a") as h5:  # and adds to it
        h5.create_group("db/2.jpg").create_dataset("keypoints", data=np.zeros((1, 2)))
    assert FeatureReader(path).names() == ["db/1.jpg", "db/2.jpg"]


@with_files
@given(st.lists(image_names, unique=True, max_size=6))
def test_feature_names_round_trip(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    path = tmp_path_factory.mktemp("features") / "f.h5"
    with FeatureWriter(path, {}) as writer:
        for i, name in enumerate(names):
            writer.add(name, np.full((i, 2), i), np.full(i, i))
    with FeatureReader(path) as reader:
        assert reader.names() == sorted(names)
        for i, name in enumerate(names):
            np.testing.assert_array_equal(reader.keypoints(name), np.full((i, 2), i))


def test_hlocs_features_are_read(tmp_path: Path) -> None:
    path = tmp_path / "hloc.h5"
    with h5py.File(path, "w") as h5:
        first = h5.create_group("db/1.jpg")
        first.create_dataset("keypoints", data=np.array([[3.5, 4.5]], np.float16))
        first["keypoints"].attrs["uncertainty"] = 2
        first.create_dataset("descriptors", data=np.zeros((256, 1), np.float16))
        first.create_dataset("score", data=np.array([0.5]))
        second = h5.create_group("2.jpg")
        second.create_dataset("keypoints", data=np.array([], np.float32))  # as of hloc itself
        third = h5.create_group("3.jpg")
        third.create_dataset("keypoints", data=np.zeros((1, 2)))
        third.create_dataset("scores", data=np.array([0.25]))
        third.create_dataset("score", data=np.array([9.0]))
    with FeatureReader(path) as reader:
        assert reader.names() == ["2.jpg", "3.jpg", "db/1.jpg"]
        np.testing.assert_array_equal(reader.keypoints("db/1.jpg"), [[3.5, 4.5]])
        assert reader.keypoints("2.jpg").shape == (0, 2)
        assert reader.scores("db/1.jpg") == [0.5]
        assert reader.scores("3.jpg") == [0.25]
        assert reader.scores("2.jpg") is None
        assert reader.uncertainty("db/1.jpg") == 2.0
        assert reader.provenance == {}


def test_matches_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "matches.h5"
    with MatchWriter(path, PROVENANCE) as writer:
        writer.add("a/1.jpg", "b 2.jpg", np.array([-1, 5, -1, 0]), np.array([0, 0.5, 0, 0.25]))
        writer.add("a/1.jpg", "c.jpg", np.zeros(0, int), np.zeros(0))
        assert not path.exists()
    with h5py.File(path) as h5:
        group = h5["a-1.jpg"]["b 2.jpg"]
        assert group["matches0"].dtype == np.int32
        assert group["matching_scores0"].dtype == np.float16
        np.testing.assert_array_equal(group["matches0"], [-1, 5, -1, 0])
    with MatchReader(path) as reader:
        matches, scores = reader.matches("a/1.jpg", "b 2.jpg")
        assert matches.dtype == np.int64
        assert scores.dtype == np.float32
        np.testing.assert_array_equal(matches, [[1, 5], [3, 0]])
        np.testing.assert_array_equal(scores, [0.5, 0.25])
        matches, scores = reader.matches("b 2.jpg", "a/1.jpg")
        np.testing.assert_array_equal(matches, [[5, 1], [0, 3]])
        assert reader.matches("c.jpg", "a/1.jpg")[0].shape == (0, 2)
        assert ("c.jpg", "a/1.jpg") in reader
        assert ("c.jpg", "b 2.jpg") not in reader
        with pytest.raises(EdmHlocError, match=r"'c\.jpg', 'b 2\.jpg'.*matches\.h5"):
            reader.matches("c.jpg", "b 2.jpg")
        assert reader.provenance == PROVENANCE


def test_hlocs_matches_are_read_in_every_format(tmp_path: Path) -> None:
    path = tmp_path / "hloc.h5"
    with h5py.File(path, "w") as h5:
        for i, key in enumerate(["db-1/q-1", "db-1_q-2", "db-1_q-2/x"]):
            group = h5.require_group(key)
            group.create_dataset("matches0", data=np.array([-1, 10 + i], np.int16))
            group.create_dataset("matching_scores0", data=np.array([0, 1], np.float16))
        # dense matching was killed before it gave this pair its indices
        h5.create_group("db-1/q-3").create_dataset("keypoints0", data=np.zeros((2, 2)))
    with MatchReader(path) as reader:
        for name0, name1, expected in [
            ("db/1", "q/1", [[1, 10]]),
            ("q/1", "db/1", [[10, 1]]),
            ("db/1", "q/2", [[1, 11]]),
            ("q/2", "db/1", [[11, 1]]),
            ("db/1_q/2", "x", [[1, 12]]),
        ]:
            assert (name0, name1) in reader
            np.testing.assert_array_equal(reader.matches(name0, name1)[0], expected)
        assert ("db/1", "q/3") not in reader


def test_colliding_match_keys_are_refused(tmp_path: Path) -> None:
    empty = np.zeros(0, int)
    with MatchWriter(tmp_path / "m.h5", {}) as writer:
        writer.add("a/b.jpg", "c", empty, empty)
        with pytest.raises(EdmHlocError, match="same key"):
            writer.add("a-b.jpg", "c", empty, empty)
        with pytest.raises(EdmHlocError, match="written once"):
            writer.add("a/b.jpg", "c", empty, empty)


def test_a_failed_block_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    for name in ("first.jpg", "second.jpg"):
        with FeatureWriter(path, {}) as writer:
            writer.add(name, np.zeros((1, 2)), np.zeros(1))
        assert FeatureReader(path).names() == [name]

    def failing() -> None:
        with FeatureWriter(path, {}) as writer:
            writer.add("third.jpg", np.zeros((1, 2)), np.zeros(1))
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        failing()
    assert files(tmp_path) == {"features.h5"}
    assert FeatureReader(path).names() == ["second.jpg"]


def test_leftovers_of_a_kill_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    (tmp_path / ".features.h5.tmp").write_bytes(b"half a file")
    with FeatureWriter(path, {}) as writer:
        writer.add("a.jpg", np.zeros((1, 2)), np.zeros(1))
    assert files(tmp_path) == {"features.h5"}


@posix_only
def test_two_processes_on_one_final_file(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    first = FeatureWriter(path, {})
    first.add("first.jpg", np.zeros((1, 2)), np.zeros(1))
    with FeatureWriter(path, {}) as second:
        second.add("second.jpg", np.zeros((1, 2)), np.zeros(1))
        with pytest.raises(EdmHlocError, match="Another process"):
            first.__exit__(None, None, None)
        second.add("third.jpg", np.zeros((1, 2)), np.zeros(1))
    assert FeatureReader(path).names() == ["second.jpg", "third.jpg"]
