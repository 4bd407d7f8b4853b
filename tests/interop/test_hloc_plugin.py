"""The plug-in: in a skeleton of hloc made here, and in the real hloc where it is installed."""

from __future__ import annotations

import copy
import importlib
import itertools
import logging
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pycolmap
import pytest
import torch

import edm_hloc
from edm_hloc import cli
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.interop.repair import repair_database, undefined_pairs_are_ignored
from edm_hloc.keypoints.aggregation import KeypointFiles, ReferenceFiles, aggregate
from edm_hloc.keypoints.h5 import FeatureReader
from edm_hloc.keypoints.quantization import QuantizationConfig
from edm_hloc.localization.points import ModelPoints
from edm_hloc.localization.poses import read_poses
from edm_hloc.localization.queries import Queries, localize_queries
from edm_hloc.mapping.database import MatchedImages
from edm_hloc.mapping.triangulation import triangulate
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.synthetic.textures import TextureBank

SKELETON = {
    "__init__.py": "__version__ = '1.5'",
    "matchers/__init__.py": "",
    "utils/__init__.py": "",
    "utils/base_model.py": """
        import inspect
        from torch import nn
        class BaseModel(nn.Module):
            default_conf = {}
            required_inputs = []
            def __init__(self, conf):
                super().__init__()
                self._init({**self.default_conf, **conf})
            def forward(self, data):
                assert all(name in data for name in self.required_inputs)
                return self._forward(data)
        def dynamic_load(root, name):
            path = f"{root.__name__}.{name}"
            module = __import__(path, fromlist=[""])
            found = [value for _, value in inspect.getmembers(module, inspect.isclass)
                     if value.__module__ == path and issubclass(value, BaseModel)]
            assert len(found) == 1, found
            return found[0]
        """,
    "match_dense.py": """
        confs = {"loftr": {"output": "matches-loftr"}}
        def main(name, path):
            if path is None:
                raise KeyboardInterrupt
            open(path, "w").write(confs[name]["output"])
        if __name__ == "__main__":
            import argparse
            parser = argparse.ArgumentParser()
            parser.add_argument("--conf", choices=list(confs))
            parser.add_argument("--out")
            args = parser.parse_args()
            main(args.conf, args.out)
        """,
}


def forget(name: str) -> None:
    for module in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
        del sys.modules[module]


@pytest.fixture
def skeleton(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The parts of hloc that the plug-in uses, importable as hloc during one test."""
    folder = tmp_path / "site" / "hloc"
    for name, text in SKELETON.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))
    before = {n: m for n, m in sys.modules.items() if n == "hloc" or n.startswith("hloc.")}
    forget("hloc")
    forget("edm_hloc.hloc_plugin")
    forget("edm_hloc.interop.hloc_plugin")
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.setattr(sys, "argv", sys.argv)
    yield folder
    forget("hloc")
    forget("edm_hloc.hloc_plugin")
    forget("edm_hloc.interop.hloc_plugin")
    sys.modules.update(before)


def plugin() -> ModuleType:
    importlib.import_module("edm_hloc.hloc_plugin")  # which registers
    return importlib.import_module("edm_hloc.interop.hloc_plugin")


def load(name: str) -> type:
    base_model = importlib.import_module("hloc.utils.base_model")
    return base_model.dynamic_load(importlib.import_module("hloc.matchers"), name)


@pytest.mark.usefixtures("skeleton")
def test_registration_and_presets() -> None:
    match_dense = importlib.import_module("hloc.match_dense")
    match_dense.confs["edm_inloc"] = {"mine": True}
    confs = plugin().CONFS
    models = [load(name) for name in ("edm", "edm_s", "eloftr")]
    assert len({model.__name__ for model in models}) == 3
    before = dict(match_dense.confs)
    edm_hloc.register()
    plugin().register()
    assert [load(name) for name in ("edm", "edm_s", "eloftr")] == models
    assert match_dense.confs == before
    assert match_dense.confs["loftr"] == {"output": "matches-loftr"}
    assert match_dense.confs["edm_inloc"] == {"mine": True}  # the user's preset is kept

    kinds = ("", "_aachen", "_inloc", "_superpoint")
    assert list(confs) == [f"{model}{kind}" for model in ("edm", "eloftr") for kind in kinds]
    assert len({conf["output"] for conf in confs.values()}) == len(confs)
    for name, conf in confs.items():
        assert conf.keys() == {"output", "model", "preprocessing", "max_error", "cell_size"}
        assert conf["model"]["name"] == name.partition("_")[0]
        assert conf["preprocessing"]["grayscale"]
        assert conf["preprocessing"]["dfactor"] == 32
        assert conf["preprocessing"]["resize_max"] % 32 == 0
        assert conf["cell_size"] >= conf["max_error"] > 0
    match_dense.confs["edm"]["max_error"] = 99
    assert confs["edm"]["max_error"] == 1


@pytest.mark.usefixtures("skeleton")
def test_model_refines_image_0_and_encodes_once() -> None:
    plugin()
    model = load("edm_s")({"name": "edm_s", "weights": None, "max_num_matches": 40}).eval()
    assert model.matcher.info.weights.name == "edm_s"
    torch.manual_seed(0)
    small = torch.rand(1, 1, 12, 16)
    image = torch.nn.functional.interpolate(small, (96, 128), mode="bicubic").clamp(0, 1)
    encoded = []
    encode = model.matcher.encode
    model.matcher.encode = lambda i: encoded.append(i) or encode(i)
    data = {"image0": image[..., :64, :96].contiguous(), "image1": image}
    with torch.no_grad():
        found = model(data)
        model({"image0": image, "image1": data["image0"]})
    assert len(encoded) == 2
    assert found.keys() == {"keypoints0", "keypoints1", "scores"}
    assert 5 < len(found["scores"]) <= 40
    torch.testing.assert_close(found["keypoints1"] % 8, torch.zeros_like(found["keypoints1"]))
    assert (found["keypoints0"] % 8 != 0).float().mean() > 0.9
    assert (found["keypoints0"] - found["keypoints1"]).abs().median() < 1
    with pytest.raises(ValueError, match="32"), torch.no_grad():
        model({"image0": image[..., :-8], "image1": image})


class OnGPU(torch.Tensor):
    """A tensor that cannot be converted to NumPy without `cpu()`, like one on a GPU."""

    def numpy(self) -> np.ndarray:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def cpu(self) -> torch.Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(torch.Tensor)


@pytest.mark.usefixtures("skeleton")
def test_matches_refined_by_the_photos_are_a_key_away() -> None:
    plugin()
    texture = TextureBank.procedural(1, size=512, seed=0).textures[0, :256, :320]
    image = texture[None, None].float() / 255
    upside_down = image.flip((2, 3)).contiguous()
    found = {}
    for refine in ("none", "photometric"):
        conf = {"name": "edm_s", "weights": None, "refine": refine}
        model = load("edm_s")(conf).eval()
        with torch.no_grad():
            images = {"image0": image, "image1": upside_down}
            # as if hloc had moved them to its device
            matches = model({name: x.as_subclass(OnGPU) for name, x in images.items()})
        there = torch.tensor([319.0, 255.0]) - matches["keypoints1"]
        away = (there - matches["keypoints0"]).norm(dim=1)
        found[refine] = int((away < 1).sum())
    assert found["photometric"] > 200
    assert found["none"] < 20
    with pytest.raises(EdmHlocError, match="'photometric' or 'none'"):
        load("edm_s")({"name": "edm_s", "weights": None, "refine": "loftr"})


def test_a_matcher_of_hlocs_own_is_kept(skeleton: Path, caplog: pytest.LogCaptureFixture) -> None:
    (skeleton / "matchers/eloftr.py").write_text(
        "from hloc.utils.base_model import BaseModel\nclass Theirs(BaseModel): pass\n"
    )
    with caplog.at_level(logging.WARNING):
        plugin()
    assert load("eloftr").__name__ == "Theirs"
    assert load("edm").__name__ == "EDM"
    assert "of its own" in caplog.text


def test_no_hloc_an_old_one_and_a_broken_one(
    skeleton: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (skeleton / "match_dense.py").write_text("import torchvision_that_is_not_there\n")
    with pytest.raises(EdmHlocError, match="needs torchvision_that_is_not_there"):
        edm_hloc.register()
    (skeleton / "match_dense.py").write_text("raise RuntimeError('operator nms\\nmissing')\n")
    with pytest.raises(EdmHlocError, match="operator nms\\): its libraries"):
        edm_hloc.register()
    (skeleton / "match_dense.py").unlink()
    importlib.invalidate_caches()
    with pytest.raises(EdmHlocError, match=r"no module hloc.match_dense: .* update hloc"):
        edm_hloc.register()
    forget("hloc")

    class NotInstalled:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "hloc":
                raise ModuleNotFoundError("No module named 'hloc'", name="hloc")

    monkeypatch.setattr(sys, "meta_path", [NotInstalled(), *sys.meta_path])
    with pytest.raises(ImportError, match="hloc is not installed: pip install"):
        plugin()
    assert cli.main(["hloc", "match_dense", "--help"]) == 1
    assert "edm-hloc: hloc is not installed" in capsys.readouterr().err


@pytest.mark.usefixtures("skeleton")
def test_command_line_of_hloc(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.txt"
    for module in ("match_dense", "hloc.match_dense"):
        assert cli.main(["hloc", module, "--conf", "edm_aachen", "--out", str(out)]) == 0
        assert out.read_text() == "matches-edm_aachen"
        out.unlink()
    with pytest.raises(SystemExit):
        cli.main(["hloc", "match_dense", "--conf", "none"])
    assert "edm_superpoint" in capsys.readouterr().err
    for module, message in (
        ("matchers", "is no command"),
        ("matchers.edm", "is no command"),
        ("nothing", "no module hloc.nothing"),
    ):
        assert cli.main(["hloc", module]) == 1
        assert message in capsys.readouterr().err

    # errors that hloc does not catch are told in one line, with a traceback under -v
    missing = ["match_dense", "--conf", "edm", "--out", str(tmp_path / "none" / "out.txt")]
    assert cli.main(["hloc", *missing]) == 1
    said = capsys.readouterr().err
    assert "hloc.match_dense failed (FileNotFoundError: " in said
    assert "Traceback" not in said
    assert cli.main(["hloc", "-v", *missing]) == 1
    assert "Traceback" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="130"):
        cli.main(["hloc", "match_dense", "--conf", "edm"])
    assert "interrupted. Delete its match file" in capsys.readouterr().err


# --------------------------------------------------------------------------- the real hloc


@pytest.fixture
def hloc() -> ModuleType:
    try:
        return importlib.import_module("hloc.match_dense")
    except Exception as error:  # not installed, or with libraries that do not fit each other
        pytest.skip(f"hloc is not installed or cannot be imported: {error}")


def assert_same_files(theirs: tuple[Path, Path], ours: tuple[Path, Path], pairs: list) -> None:
    with FeatureReader(theirs[0]) as a, FeatureReader(ours[0]) as b:
        assert a.names() == b.names() != []
        for name in a.names():
            assert a.keypoints(name).dtype == b.keypoints(name).dtype == np.float32
            np.testing.assert_array_equal(a.keypoints(name), b.keypoints(name))
            np.testing.assert_array_equal(a.scores(name), b.scores(name))
    number = 0
    with h5py.File(theirs[1]) as a, h5py.File(ours[1]) as b:
        for pair in pairs:
            for data in ("matches0", "matching_scores0"):
                mine, other = b["/".join(pair)][data], a["/".join(pair)][data]
                assert mine.dtype == other.dtype
                np.testing.assert_array_equal(mine, other)
            number += int((other[()] > 0).sum())
    assert number > 100


@pytest.mark.parametrize("preset", ["edm", "edm_aachen"])
def test_with_the_real_hloc(hloc: Any, preset: str, scene: Path, tmp_path: Path) -> None:
    """The same raw matches give the same files, and both sides can use the other's."""
    from hloc import localize_sfm, triangulation

    edm_hloc.register()
    images = scene / "images"
    names = sorted(path.name for path in images.iterdir())
    mapping = [*itertools.pairwise(names[:5]), (names[0], names[2])]
    queries = [(names[5], names[3]), (names[5], names[4]), (names[6], names[4])]
    for name, pairs in (("mapping", mapping), ("queries", queries)):
        (tmp_path / f"{name}.txt").write_text("".join(f"{a} {b}\n" for a, b in pairs))
    conf = copy.deepcopy(hloc.confs[preset])
    conf["model"]["weights"] = "edm_s"

    def aggregated(raw: Path, pairs: list, max_kps: int | None, reference: Path | None = None):
        files = raw.with_suffix(".features.h5"), raw.with_suffix(".matches.h5")
        config = QuantizationConfig(conf["max_error"], conf["cell_size"], max_kps)
        with RawMatchReader(raw) as reader:
            references = ReferenceFiles((reference,) if reference else ())
            aggregate(reader, pairs, KeypointFiles(*files), config, references)
        return files

    theirs = hloc.main(conf, tmp_path / "mapping.txt", images, tmp_path)
    ours = aggregated(theirs[1], mapping, 8192)
    assert_same_files(theirs, ours, mapping)
    for max_kps in (None, 300):
        raw = tmp_path / f"queries{max_kps}.h5"
        located = hloc.main(
            conf,
            tmp_path / "queries.txt",
            images,
            features=tmp_path / f"query_features{max_kps}.h5",
            matches=raw,
            features_ref=theirs[0],
            max_kps=max_kps,
        )
        again = aggregated(raw, queries, max_kps, reference=theirs[0])
        assert_same_files(located, again, queries)
        if max_kps is None:
            of_queries = {"theirs": located, "ours": again}
    # The keypoints of an earlier run vote when it is run again.
    voted, anchors = tmp_path / "voted.h5", tmp_path / "anchors.h5"
    for copied in (voted, anchors):
        shutil.copy(ours[0], copied)
    raw = tmp_path / "again.h5"
    hloc.main(conf, tmp_path / "mapping.txt", images, features=voted, matches=raw, overwrite=True)
    with RawMatchReader(raw) as reader:
        files = tmp_path / "voted.features.h5", tmp_path / "voted.matches.h5"
        config = QuantizationConfig(conf["max_error"], conf["cell_size"], 8192)
        voting = ReferenceFiles((anchors,), fixed=False)
        aggregate(reader, mapping, KeypointFiles(*files), config, voting)
    assert_same_files((voted, raw), files, mapping)

    # Each uses the files of both. Only the mapping images have keypoints.
    model = tmp_path / "model"
    model.mkdir()
    truth = pycolmap.Reconstruction(scene / "truth")
    _mapping_cameras(truth, names[:5]).write_binary(model)
    cameras = {image.name: truth.cameras[image.camera_id] for image in truth.images.values()}
    query_list = tmp_path / "intrinsics.txt"
    query_list.write_text(
        "".join(
            f"{n} {c.model.name} {c.width} {c.height} {' '.join(map(str, c.params))}\n"
            for n, c in ((name, cameras[name]) for name in names[5:7])
        )
    )
    retrieval = {names[5]: [names[3], names[4]], names[6]: [names[4]]}
    poses = {}
    for label, (features, matches) in (("theirs", theirs), ("ours", ours)):
        out = tmp_path / f"{label}_mapped_here"
        matched = MatchedImages(images, features, matches, mapping)
        _, mapped = triangulate(model, matched, tmp_path / "d.db", out)
        assert mapped.statistics.points > 50
        folder = tmp_path / label
        pairs_file = tmp_path / "mapping.txt"
        made = triangulation.main(folder, model, images, pairs_file, features, matches)
        if undefined_pairs_are_ignored() and made.num_points3D() == 0:  # which hloc does not notice
            assert repair_database(folder / "database.db").repaired == len(mapping)
            made = triangulation.run_triangulation(folder, folder / "database.db", images, made)
        assert made.num_points3D() > 20

        query_features, query_matches = of_queries[label]
        answers = localize_queries(
            Queries(list(retrieval), cameras, retrieval),
            query_features,
            query_matches,
            ModelPoints(out),
            tmp_path / f"{label}.jsonl",
        )
        poses[label, "here"] = {answer.query: answer.pose for answer in answers}
        written = tmp_path / f"{label}.txt"
        queries_file = tmp_path / "queries.txt"
        localize_sfm.main(out, query_list, queries_file, query_features, query_matches, written)
        poses[label, "hloc"] = read_poses(written)
    for found in poses.values():
        for image in truth.images.values():
            if image.name not in retrieval:
                continue
            pose, true = found[image.name], image.cam_from_world()
            assert np.rad2deg((pose.rotation * true.rotation.inverse()).angle()) < 8
            distance = pose.inverse().translation - true.inverse().translation
            assert np.linalg.norm(distance) < 0.1 * extent(truth)


def extent(model: Any) -> float:
    centres = np.array([i.cam_from_world().inverse().translation for i in model.images.values()])
    return float(np.linalg.norm(np.ptp(centres, axis=0)))


def _mapping_cameras(whole: Any, names: list[str]) -> Any:
    part = pycolmap.Reconstruction()
    for camera in whole.cameras.values():
        part.add_camera_with_trivial_rig(camera)
    for image in whole.images.values():
        if image.name in names:
            bare = pycolmap.Image(
                name=image.name, image_id=image.image_id, camera_id=image.camera_id
            )
            part.add_image_with_trivial_frame(bare, image.cam_from_world())
    return part
