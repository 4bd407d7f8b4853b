"""The plug-in, in a skeleton of hloc made here; the real hloc is in test_hloc.py."""

from __future__ import annotations

import importlib
import logging
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pycolmap
import pytest
import torch

import edm_hloc
from edm_hloc import cli
from edm_hloc.base.errors import EdmHlocError
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

    kinds = ("", "_aachen", "_inloc", "_superpoint", "_refined", "_aachen_refined")
    assert list(confs) == [f"{model}{kind}" for model in ("edm", "eloftr") for kind in kinds]
    assert len({conf["output"] for conf in confs.values()}) == len(confs)
    for name, conf in confs.items():
        assert conf.keys() == {"output", "model", "preprocessing", "max_error", "cell_size"}
        assert conf["model"]["name"] == name.partition("_")[0]
        refined = name.endswith("_refined")
        assert conf["model"].get("refine") == ("photometric" if refined else None)
        if refined:
            plain = confs[name.removesuffix("_refined")]
            same = ("preprocessing", "max_error", "cell_size")
            assert all(conf[key] == plain[key] for key in same)
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
    with pytest.raises(EdmHlocError, match="32"), torch.no_grad():
        model({"image0": image[..., :-8], "image1": image})


class OnGPU(torch.Tensor):
    """A tensor that cannot be converted to NumPy without `cpu()`, like one on a GPU."""

    def numpy(self) -> np.ndarray:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def cpu(self) -> torch.Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(torch.Tensor)


@pytest.mark.usefixtures("skeleton")
@pytest.mark.parametrize("name", ["edm", "edm_refined", "eloftr"])
def test_wrong_values_in_a_preset_are_named(name: str) -> None:
    """Also those that would give no matches without a word."""
    conf = plugin().CONFS[name]["model"]
    kind, conf = load(conf["name"]), {**conf, "weights": {"edm": "edm_s"}.get(conf["name"])}
    for key, value in (
        ("max_num_matches", -1),
        ("max_num_matches", 0),
        ("match_threshold", 5),
        ("match_threshold", float("nan")),
    ):
        with pytest.raises(EdmHlocError, match=f"{key} is {value}: it must be at least"):
            kind({**conf, key: value})
    if name == "eloftr":
        return  # its weights are not everywhere, and the rest is the same
    model = kind(conf)
    for shape in ((1, 3, 64, 64), (1, 1, 64, 72)):
        images = {"image0": torch.zeros(shape), "image1": torch.zeros(shape)}
        with pytest.raises(EdmHlocError, match='"grayscale": True and "dfactor": 32'):
            model(images)


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
    assert found["photometric"] > 100
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


@pytest.mark.parametrize("version", ["4.2.1", "4.2.0", "4.3.0"])
def test_the_pycolmap_that_gives_no_points(
    version: str, skeleton: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Importing the plug-in beside it warns, unless hloc sets the configuration of its pairs."""
    from edm_hloc.base.log import warn_once

    warn_once.cache_clear()
    monkeypatch.setattr(pycolmap, "__version__", version)
    triangulation = skeleton / "triangulation.py"
    mended = "config = pycolmap.TwoViewGeometryConfiguration.CALIBRATED\n"
    broken = "geometry = pycolmap.TwoViewGeometry(inlier_matches=matches)\n"
    for text, warns in ((mended + broken, False), (broken, version == "4.2.1")):
        caplog.clear()
        triangulation.write_text(text)
        with caplog.at_level(logging.WARNING):
            plugin().register()
        assert ('pip install "pycolmap<4.2.1"' in caplog.text) == warns
    warn_once.cache_clear()


def test_a_command_warns_of_what_it_will_run_into(
    skeleton: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (skeleton / "localize_inloc.py").write_text(
        "def interpolate(kp):\n    assert np.all(kp > -1) and np.all(kp < 1)\n"
        "if __name__ == '__main__':\n    pass\n"
    )
    with caplog.at_level(logging.WARNING):
        assert cli.main(["hloc", "localize_inloc"]) == 0
    assert "first or last row or column" in caplog.text
    assert "Use edm-hloc inloc." in caplog.text
    caplog.clear()
    out = ["--conf", "edm_refined", "--out", str(tmp_path / "out.txt")]
    with caplog.at_level(logging.WARNING):
        assert cli.main(["hloc", "match_dense", *out]) == 0
    assert caplog.text == ""
    assert (tmp_path / "out.txt").read_text() == "matches-edm_refined"
