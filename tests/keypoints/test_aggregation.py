"""Raw matches to keypoint and match files, against a plain reading of hloc's description."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import textwrap
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.h5 import pair_key
from edm_hloc.base.matches import Matches
from edm_hloc.keypoints.aggregation import (
    AggregationSummary,
    KeypointFiles,
    KeypointWriters,
    ReferenceFiles,
    ReferenceKeypoints,
    aggregate,
    aggregate_into,
)
from edm_hloc.keypoints.h5 import FeatureReader, FeatureWriter
from edm_hloc.keypoints.quantization import QuantizationConfig
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.matching.writer import RawMatchWriter
from tests.oracles import hloc_quantization as oracle

CONFIG = QuantizationConfig(2, 8, 8192)


class RawInMemory(dict):
    """Stands in for a RawMatchReader and counts what is read."""

    def __init__(self, *args):
        super().__init__(*args)
        self.reads = 0

    def read(self, name0, name1):
        self.reads += 1
        stored = self.get((name0, name1))
        return self[name1, name0].swapped() if stored is None else stored

    def __contains__(self, pair):
        return super().__contains__(pair) or super().__contains__(pair[::-1])


class ReferenceInMemory(dict):
    """Stands in for a FeatureReader: {name: (keypoints, scores or None)}."""

    def keypoints(self, name):
        return self[name][0]

    def scores(self, name):
        return self[name][1]


class Sink(dict):
    """Stands in for a FeatureWriter or a MatchWriter."""

    def add(self, *item):
        *names, first, second = item
        key = names[0] if len(names) == 1 else tuple(names)
        assert key not in self
        self[key] = (first, second)


def make_matches(rng, count, size=(471, 313), kind="noisy"):
    points = rng.uniform(-3, size, (2, count, 2))
    if kind == "whole":
        points = points.round()
    elif kind == "half":
        points = (points * 2).round() / 2
    elif kind == "borders":
        points = (points / 4).round() * 4 - 0.5
    scores = rng.random(count)
    if rng.random() < 0.5:
        scores = (scores * 4).round() / 4  # many are equal
    return Matches(*points.astype(np.float32), scores.astype(np.float32))


def make_raw(rng, pairs, counts, **options):
    return RawInMemory({pair: make_matches(rng, rng.choice(counts), **options) for pair in pairs})


def make_reference(rng, names, size=(471, 313)):
    reference = ReferenceInMemory()
    for name in names:
        keypoints = rng.uniform(0, size, (rng.integers(0, 60), 2))
        if rng.random() < 0.5:
            keypoints = keypoints.round()
        scores = rng.random(len(keypoints)).astype(np.float32)
        reference[name] = (keypoints.astype(np.float32), scores)
    return reference


def run_in_memory(raw, pairs, config, references=(), fixed=True):
    features, matches = Sink(), Sink()
    writers = KeypointWriters(features, matches)
    references = ReferenceKeypoints(references, fixed)
    summary = aggregate_into(raw, pairs, writers, config, references)
    return features, matches, summary


def assert_same(ours, expected):
    assert ours.keys() == expected.keys()
    for name, arrays in ours.items():
        for mine, theirs in zip(arrays, expected[name], strict=True):
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, theirs)


def write_raw(folder, raw):
    with RawMatchWriter(folder, {"weights": "abc"}) as writer:
        for pair, matches in raw.items():
            writer.add(*pair, matches)
    return RawMatchReader(folder)


def read_results(features_path, matches_path, pairs):
    with FeatureReader(features_path) as reader:
        features = {name: (reader.keypoints(name), reader.scores(name)) for name in reader.names()}
    with h5py.File(matches_path) as h5:
        groups = {pair: h5[pair_key(*pair)] for pair in pairs}
        matches = {p: (g["matches0"][()], g["matching_scores0"][()]) for p, g in groups.items()}
    return features, matches


@pytest.mark.parametrize("position", ["mean", "adjusted"])
def test_temporary_files(position, monkeypatch):
    opened = []
    make = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **o: opened.append(o) or make(**o))
    pairs = [("a", "b"), ("b", "c")]
    raw = make_raw(np.random.default_rng(0), pairs, [20])
    run_in_memory(raw, pairs, QuantizationConfig(2, 2, 8192, position=position))
    assert len(opened) == 1
    # one image of each pair has fixed keypoints: the others are adjusted one by one
    reference = make_reference(np.random.default_rng(1), ["b"], (471, 313))
    run_in_memory(
        raw, pairs, QuantizationConfig(2, 2, 8192, position=position), references=[reference]
    )
    assert len(opened) == 2


# --------------------------------------------------------------------------- same as hloc


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    config=st.builds(
        QuantizationConfig,
        st.sampled_from([0.5, 1, 2, 2.5, 4]),
        st.sampled_from([0, 1, 4, 7, 8]),
        st.sampled_from([None, 5, 50, 8192]),
    ),
    kind=st.sampled_from(["noisy", "whole", "half", "borders"]),
    references=st.sampled_from(["none", "fixed", "quantized"]),
)
def test_agrees_with_plain_reading(seed, config, kind, references):
    rng = np.random.default_rng(seed)
    names = ["db/a.jpg", "query/a.jpg", "b.png", "query/c d.jpg", "z-1.jpg"][: rng.integers(2, 6)]
    pairs = [(a, b) for a in names for b in names if a < b]
    pairs = [pair if rng.random() < 0.5 else pair[::-1] for pair in pairs]
    pairs = [pairs[i] for i in rng.permutation(len(pairs))[: rng.integers(1, len(pairs) + 1)]]
    size = [(471, 313), (30, 20)][rng.integers(2)]
    raw = make_raw(rng, pairs, [0, 1, 10, 80], kind=kind, size=size)
    reference = make_reference(rng, [n for n in names if rng.random() < 0.5], size)
    options, expected_options = {}, {}
    if references == "fixed":
        options = {"references": [reference]}
        expected_options = {"fixed": {name: item[0] for name, item in reference.items()}}
    elif references == "quantized":
        options = {"references": [reference], "fixed": False}
        expected_options = {"anchors": reference}

    features, matches, summary = run_in_memory(raw, pairs, config, **options)
    expected = oracle.aggregate(
        raw, pairs, config.max_error, config.cell_size, config.max_kps, **expected_options
    )
    assert_same(features, expected[0])
    assert_same(matches, expected[1])
    assert summary == AggregationSummary(
        images=len(expected[0]),
        pairs=len(pairs),
        keypoints=sum(len(keypoints) for keypoints, _ in expected[0].values()),
        matches=sum(int((matches0 != -1).sum()) for matches0, _ in expected[1].values()),
        missing_pairs=(),
    )


def test_fixed_keypoints_of_score_zero_get_no_matches():
    rng = np.random.default_rng(3)
    pairs = [("query.jpg", "db.jpg")]
    raw = make_raw(rng, pairs, [2000], size=(150, 100))
    keypoints = rng.uniform(0, 100, (400, 2)).astype(np.float32)
    usable = np.flatnonzero(rng.random(400) < 0.5)
    scores = np.zeros(400, np.float32)
    scores[usable] = 1
    some = ReferenceInMemory({"db.jpg": (keypoints[usable], scores[usable])})
    every = ReferenceInMemory({"db.jpg": (keypoints, scores)})
    config = QuantizationConfig(2, 8, None)
    expected, expected_matches, summary = run_in_memory(raw, pairs, config, [some])
    features, matches, _ = run_in_memory(raw, pairs, config, [every])
    assert_same(features, expected)
    (found, its_scores), (of_usable, expected_scores) = (
        matches[pairs[0]],
        expected_matches[pairs[0]],
    )
    np.testing.assert_array_equal(found, np.append(usable, -1)[of_usable])
    np.testing.assert_array_equal(its_scores, expected_scores)
    assert summary.matches > 50


@pytest.mark.parametrize("max_kps", [None, 300, 8192])
def test_files_agree_with_plain_reading(tmp_path, max_kps):
    rng = np.random.default_rng(1)
    names = [f"{folder}/{i}.jpg" for folder in ("db", "query") for i in range(4)]  # same basenames
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    raw = make_raw(rng, pairs, [0, 700, 1500], size=(150, 100))
    raw[pairs[3]] = make_matches(rng, 0)
    fixed = {"db/0.jpg": rng.uniform(0, 100, (400, 2)).astype(np.float32)}
    with FeatureWriter(tmp_path / "reference.h5", {}) as writer:
        writer.add("db/0.jpg", fixed["db/0.jpg"], np.ones(400))
        writer.add("not in pairs.jpg", np.zeros((3, 2)), np.ones(3))
    config = QuantizationConfig(2, 8, max_kps)
    features_path, matches_path = tmp_path / "out/features.h5", tmp_path / "out/matches.h5"
    with write_raw(tmp_path / "raw", raw) as reader:
        summary = aggregate(
            reader,
            [*pairs, pairs[0], pairs[1][::-1], ("db/1.jpg", "db/1.jpg")],
            KeypointFiles(features_path, matches_path),
            config,
            ReferenceFiles((tmp_path / "reference.h5",)),
            provenance={"preset": "edm"},
        )
    features, matches = read_results(features_path, matches_path, pairs)
    expected = oracle.aggregate(raw, pairs, 2, 8, max_kps, fixed=fixed)
    assert_same(features, expected[0])
    assert_same(matches, expected[1])
    assert "db/0.jpg" not in features
    assert len(matches[pairs[3]][0]) == 0
    assert (summary.images, summary.pairs) == (7, 28)
    assert summary.matches > 1000
    for path in (features_path, matches_path):
        with h5py.File(path) as h5:
            stored = json.loads(h5.attrs["provenance"])
        assert stored.items() >= {"weights": "abc", "preset": "edm", "max_kps": max_kps}.items()
        assert (stored["max_error"], stored["cell_size"]) == (2, 8)
    assert sorted(path.name for path in features_path.parent.iterdir()) == [
        "features.h5",
        "matches.h5",
    ]


def test_localization_keeps_the_points_of_the_query():
    raw = RawInMemory(
        {
            ("q", "db"): Matches(
                np.float32([[3.25, 4.125], [90.5, 1.0], [3.5, 4.0]]),
                np.float32([[10.5, 20], [50, 50], [90, 91]]),
                np.float32([0.5, 0.75, 0.25]),
            )
        }
    )
    reference = ReferenceInMemory({"db": (np.float32([[90, 90], [10, 20]]), None)})
    features, matches, _ = run_in_memory(
        raw, list(raw), QuantizationConfig(2, 8, None), references=[reference]
    )
    assert features.keys() == {"q"}
    np.testing.assert_array_equal(features["q"][0], raw["q", "db"].keypoints0)
    assert matches["q", "db"][0].tolist() == [1, -1, 0]
    assert matches["q", "db"][1].tolist() == [0.5, 0, 0.25]


def test_references_without_scores_vote_with_one_each():
    raw = RawInMemory({("a", "b"): make_matches(np.random.default_rng(0), 30)})
    keypoints = np.float32([[7.5, 7.5], [7.0, 7.4], [100.5, 99.5]])
    run = [
        run_in_memory(
            raw,
            list(raw),
            CONFIG,
            references=[ReferenceInMemory({"a": (keypoints, scores)})],
            fixed=False,
        )
        for scores in (None, np.ones(3, np.float16))
    ]
    assert_same(run[0][0], run[1][0])
    np.testing.assert_array_equal(run[0][0]["a"][0][0], [7.5, 7.5])
    assert run[0][0]["a"][1][0] == 2


def test_of_several_references_the_last_counts():
    raw = RawInMemory(
        {("q", "db"): Matches(*np.zeros((2, 1, 2), np.float32), np.ones(1, np.float32))}
    )
    first = ReferenceInMemory({"db": (np.zeros((0, 2), np.float32), None)})
    last = ReferenceInMemory({"db": (np.zeros((1, 2), np.float32), None)})
    for references, count in (([first, last], 1), ([last, first], 0)):
        assert run_in_memory(raw, list(raw), CONFIG, references=references)[2].matches == count


# --------------------------------------------------------------------------- pairs


def test_repeated_reversed_and_self_pairs():
    rng = np.random.default_rng(2)
    raw = make_raw(rng, [("a", "b"), ("c", "b")], [300], size=(60, 50))
    expected = run_in_memory(raw, [("a", "b"), ("c", "b")], CONFIG)
    pairs = [("a", "b"), ("b", "a"), ("c", "b"), ("a", "b"), ("a", "a"), ("c", "b")]
    features, matches, summary = run_in_memory(raw, pairs, CONFIG)
    assert_same(features, expected[0])
    assert_same(matches, expected[1])
    assert summary == expected[2]


def test_pair_stored_the_other_way_round():
    rng = np.random.default_rng(3)
    raw = make_raw(rng, [("a", "b")], [200], size=(60, 50))
    _, forward, _ = run_in_memory(raw, [("a", "b")], CONFIG)
    _, backward, _ = run_in_memory(raw, [("b", "a")], CONFIG)
    matches0, scores0 = forward["a", "b"]
    rows = np.flatnonzero(matches0 >= 0)
    found = {(b, a) for b, a in enumerate(backward["b", "a"][0]) if a >= 0}
    assert found == {(matches0[a], a) for a in rows}
    assert len(found) > 20
    assert sorted(scores0[rows]) == sorted(s for s in backward["b", "a"][1] if s > 0)


def test_missing_pairs_are_reported(tmp_path, caplog):
    rng = np.random.default_rng(4)
    raw = make_raw(rng, [("a", "b"), ("b", "c")], [50])
    pairs = [("a", "b"), ("broken", "a"), ("b", "c"), ("c", "broken")]
    features, matches, summary = run_in_memory(raw, pairs, CONFIG)
    assert summary.missing_pairs == (("broken", "a"), ("c", "broken"))
    assert features.keys() == {"a", "b", "c"}
    assert matches.keys() == {("a", "b"), ("b", "c")}
    assert "2 of 4 pairs" in caplog.text
    assert_same(features, run_in_memory(raw, list(raw), CONFIG)[0])


@pytest.mark.parametrize("pairs", [[], [("a", "b")]])
def test_nothing_to_do(tmp_path, pairs):
    with write_raw(tmp_path / "raw", {}) as reader:
        summary = aggregate(
            reader, pairs, KeypointFiles(tmp_path / "f.h5", tmp_path / "m.h5"), CONFIG
        )
    assert summary == AggregationSummary(0, 0, 0, 0, tuple(pairs))
    assert read_results(tmp_path / "f.h5", tmp_path / "m.h5", []) == ({}, {})


# --------------------------------------------------------------------------- damage, memory


def test_damaged_matches_are_named_and_leave_no_files(tmp_path):
    rng = np.random.default_rng(5)
    raw = make_raw(rng, [("a", "b"), ("a", "c")], [50])
    raw["a", "c"].keypoints1[7, 1] = np.nan
    (tmp_path / "f.h5").write_text("older")
    with (
        write_raw(tmp_path / "raw", raw) as reader,
        pytest.raises(EdmHlocError, match=r"image 'c' are damaged \(coordinates are not all"),
    ):
        aggregate(reader, list(raw), KeypointFiles(tmp_path / "f.h5", tmp_path / "m.h5"), CONFIG)
    assert (tmp_path / "f.h5").read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.h5", "raw"]

    raw["a", "c"] = replace(raw["a", "c"], scores=np.ones(49, np.float32))
    with pytest.raises(EdmHlocError, match=r"\('a', 'c'\) differ in length"):
        run_in_memory(raw, list(raw), CONFIG)


class RawOnDemand:
    """Makes the matches of any pair anew at each reading, so that only copies take memory."""

    def __contains__(self, pair):
        return True

    def read(self, name0, name1):
        rng = np.random.default_rng([int(name0), int(name1)])
        return make_matches(rng, 1000)


class Discard:
    def add(self, *_):
        pass


def test_memory_does_not_grow_with_the_number_of_pairs():
    def peak(images):
        pairs = [(f"{i:03}", f"{(i + k) % images:03}") for i in range(images) for k in (1, 2, 3, 4)]
        tracemalloc.start()
        summary = aggregate_into(
            RawOnDemand(), pairs, KeypointWriters(Discard(), Discard()), CONFIG
        )
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert summary.pairs == len(pairs)
        return size

    peak(10)  # what is imported and cached once
    assert peak(100) < 1.5 * peak(15)


def test_every_pair_is_read_twice():
    rng = np.random.default_rng(6)
    names = [str(i) for i in range(6)]
    raw = make_raw(rng, [(a, b) for a in names for b in names if a < b], [20])
    run_in_memory(raw, list(raw), CONFIG)
    assert raw.reads == 2 * len(raw)


def test_benchmark_runs(tmp_path):
    script = Path(__file__).parents[2] / "benchmarks/quantization.py"
    sizes = ["--images", "5", "--partners", "2", "--matches", "300", "--repeats", "1"]
    subprocess.run([sys.executable, script, *sizes, "--json", tmp_path / "out.json"], check=True)
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [result["max_kps"] for result in results] == [8192, None]
    for result in results:
        assert result["raw_matches"] == 3000
        assert result["identical_to_oracle"]
        assert result["million_matches_per_second"] > 0


# --------------------------------------------------------------------------- going on after a kill


class Stopping(RawInMemory):
    """Raw matches whose reading stops after so many pairs, as if the process had been killed."""

    provenance: ClassVar = {"weights": "abc"}
    left = 10**9

    def read(self, name0, name1):
        self.left -= 1
        if self.left < 0:
            raise InterruptedError
        return super().read(name0, name1)


def kept_run(folder, raw, config, made_from="inputs", references=None):
    files = KeypointFiles(folder / "features.h5", folder / "matches.h5", made_from)
    summary = aggregate(raw, list(raw), files, config, references)
    return summary, [path.read_bytes() for path in (files.features, files.matches)]


def scene_of_raw_matches(seed=0):
    names = [f"{folder}/{i}.jpg" for folder in ("db", "query") for i in range(4)]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    raw = Stopping(make_raw(np.random.default_rng(seed), pairs, [0, 40, 150], size=(150, 100)))
    raw[pairs[3]] = make_matches(np.random.default_rng(seed), 0)
    return raw


@pytest.mark.parametrize("position", ["bin", "mean", "adjusted"])
@pytest.mark.parametrize("fixed", [False, True])
def test_images_that_are_done_are_kept(tmp_path, position, fixed):
    raw, config = scene_of_raw_matches(), QuantizationConfig(2, 8, 8192, position)
    references = None
    if fixed:  # all database images: each query is adjusted by itself
        raw = Stopping({p: m for p, m in raw.items() if {n[:2] for n in p} == {"db", "qu"}})
        rng = np.random.default_rng(3)
        with FeatureWriter(tmp_path / "reference.h5", {}) as writer:
            for i in range(4):
                writer.add(f"db/{i}.jpg", rng.uniform(0, 100, (400, 2)), np.ones(400))
        references = ReferenceFiles((tmp_path / "reference.h5",))
    whole = kept_run(tmp_path / "whole", raw, config, references=references)
    assert whole[0].matches > 30
    reads = raw.reads
    assert reads == 2 * len(raw)
    for stop in range(0, reads, 5):
        out = tmp_path / str(stop)
        raw.left = stop
        with pytest.raises(InterruptedError):
            kept_run(out, raw, config, references=references)
        assert [path.name for path in out.iterdir()] == [".features.h5.part"]
        raw.left, raw.reads = 10**9, 0
        assert kept_run(out, raw, config, references=references) == whole  # byte for byte
        assert raw.reads <= reads - stop + 7  # of an image, of which not all pairs were read
        assert sorted(path.name for path in out.iterdir()) == ["features.h5", "matches.h5"]


def test_what_was_kept_of_other_inputs_is_not_taken(tmp_path):
    raw, config = scene_of_raw_matches(), QuantizationConfig(2, 8, 8192, "adjusted")
    raw.left = 40
    with pytest.raises(InterruptedError):
        kept_run(tmp_path, raw, config)
    raw.left, raw.reads = 10**9, 0
    kept_run(tmp_path, raw, config, "other inputs")
    assert raw.reads == 2 * len(raw)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_kill_keeps_the_images_that_are_done(tmp_path):
    raw, config = scene_of_raw_matches(), QuantizationConfig(2, 8, 8192, "adjusted")
    whole = kept_run(tmp_path / "whole", raw, config)
    code = f"""
        import os, signal
        from pathlib import Path
        from edm_hloc.keypoints.quantization import QuantizationConfig
        from tests.keypoints.test_aggregation import kept_run, scene_of_raw_matches
        raw = scene_of_raw_matches()
        read, number = raw.read, 0
        def stop(*names):
            global number
            number += 1
            if number > 30:
                os.kill(os.getpid(), signal.SIGKILL)
            return read(*names)
        raw.read = stop
        config = QuantizationConfig(2, 8, 8192, "adjusted")
        kept_run(Path({str(tmp_path / "killed")!r}), raw, config)
    """
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False, cwd=root)
    assert done.returncode == -9
    left = sorted(path.name for path in (tmp_path / "killed").iterdir())
    assert left == [".features.h5.part", ".features.h5.tmp", ".matches.h5.tmp"]
    raw.reads = 0
    assert kept_run(tmp_path / "killed", raw, config) == whole
    assert raw.reads <= 2 * len(raw) - 30 + 7
    left = sorted(path.name for path in (tmp_path / "killed").iterdir())
    assert left == ["features.h5", "matches.h5"]
