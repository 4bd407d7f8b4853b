"""Registers EDM and EfficientLoFTR as matchers of hloc; `import edm_hloc.hloc_plugin` does it.

    from hloc import match_dense
    import edm_hloc.hloc_plugin
    match_dense.main(match_dense.confs["edm"], pairs, images, outputs)

This adds the models `edm`, `edm_s` and `eloftr`, and the presets `CONFS` to
`hloc.match_dense.confs`. Nothing else in hloc is changed. Keypoints of image 0 have sub-pixel
offsets from the matcher's grid and those of image 1 lie on it, as hloc expects. With `"refine":
"photometric"` in a preset's `model`, pairs are matched as by our own commands: pairs with few
matches get a second look, and matches are refined by Lucas–Kanade alignment.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import importlib
import importlib.util
import logging
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.frames import PixelTransform
from edm_hloc.base.log import warn_once
from edm_hloc.base.settings import check_range
from edm_hloc.images.load import NetworkImage
from edm_hloc.interop.breakages import (
    BROKEN_PYCOLMAP,
    INSTALL_OLDER,
    about_to_happen,
    leaves_pairs_undefined,
)
from edm_hloc.matchers.base import Features, Matcher
from edm_hloc.matchers.registry import MatcherName
from edm_hloc.refinement.load import load_matcher

logger = logging.getLogger("hloc.edm_hloc")  # below hloc's logger, which prints its messages

HOW_TO_INSTALL = "pip install 'git+https://github.com/cvg/Hierarchical-Localization'"
_CACHE_BYTES = 1 << 30
"""Size of the cache of features of the images that were encoded last, in bytes."""


class HlocError(EdmHlocError, ImportError):
    """hloc is not installed, too old, or cannot be imported."""


def _presets(matcher: str) -> dict[str, dict[str, Any]]:
    """The presets of a matcher in hloc's form; lengths are in pixels of the original images."""

    def conf(name: str, resize_max: int, max_error: int, cell_size: int) -> dict[str, Any]:
        return {
            "output": f"matches-{name}",
            "model": {"name": matcher, "weights": None},
            "preprocessing": {"grayscale": True, "resize_max": resize_max, "dfactor": 32},
            "max_error": max_error,
            "cell_size": cell_size,
        }

    def refined(preset: dict[str, Any], name: str) -> dict[str, Any]:
        model = {**preset["model"], "refine": "photometric"}
        return {**preset, "output": f"matches-{name}", "model": model}

    plain = {
        # most accurate but with many keypoints: for small scenes
        matcher: conf(matcher, 1024, 1, 1),
        # keypoints in coarser cells, so that there are few enough for thousands of images
        f"{matcher}_aachen": conf(f"{matcher}_aachen", 1024, 2, 8),
        # photos of 4032 px and cutouts of 1600 px; matches are not triangulated
        f"{matcher}_inloc": conf(f"{matcher}_inloc", 1600, 2, 2),
        # for `features_ref`: matches are assigned to the keypoints of another detector
        f"{matcher}_superpoint": conf(f"{matcher}_superpoint", 1024, 4, 4),
    }
    # the first two with matches as our own commands make them: the most exact
    return plain | {
        f"{name}_refined": refined(plain[name], f"{name}_refined")
        for name in (matcher, f"{matcher}_aachen")
    }


CONFS: dict[str, dict[str, Any]] = _presets("edm") | _presets("eloftr")

_MODELS: dict[str, tuple[str, MatcherName, str | None]] = {
    "edm": ("EDM", "edm", None),
    "edm_s": ("EDMS", "edm", "edm_s"),
    "eloftr": ("EfficientLoFTR", "eloftr", None),
}
"""By the name of a model in hloc: its class, our matcher, and its default weights."""


def register() -> None:
    """Add the models and presets to hloc; a second call changes nothing.

    A preset or model that hloc already has under one of these names is kept.

    Raises:
        HlocError: hloc is not installed, too old, or cannot be imported.
    """
    _warn_of_pycolmap()
    match_dense = import_hloc("match_dense")
    matchers = import_hloc("matchers")
    base_model = import_hloc("utils.base_model").BaseModel
    for name, (class_name, matcher, weights) in _MODELS.items():
        path = f"hloc.matchers.{name}"
        if path in sys.modules:
            continue
        if importlib.util.find_spec(path) is not None:
            logger.warning("hloc has a matcher %r of its own, which is kept.", name)
            continue
        module = ModuleType(path, f"{class_name} from edm_hloc.")
        setattr(module, class_name, _model_class(base_model, path, class_name, matcher, weights))
        sys.modules[path] = module
        setattr(matchers, name, module)
    for name, conf in CONFS.items():
        match_dense.confs.setdefault(name, copy.deepcopy(conf))


def _warn_of_pycolmap() -> None:
    if _pycolmap_version() == BROKEN_PYCOLMAP and leaves_pairs_undefined():
        warn_once(
            f"With pycolmap {BROKEN_PYCOLMAP} hloc's triangulation gives 0 points without an "
            f"error, and hloc localizes metres off. Do this first: {INSTALL_OLDER}"
        )


def _pycolmap_version() -> str:
    """The version of the installed pycolmap; empty if it cannot be imported or has none."""
    try:
        import pycolmap
    except Exception:  # whoever needs it finds out what is wrong with it
        return ""
    return str(getattr(pycolmap, "__version__", ""))


def import_hloc(name: str) -> ModuleType:
    """Import the module `hloc.<name>`.

    Raises:
        HlocError: hloc is not installed, too old, or cannot be imported.
    """
    try:
        return importlib.import_module(f"hloc.{name}")
    except ModuleNotFoundError as error:
        if error.name == "hloc":
            raise HlocError(f"hloc is not installed: {HOW_TO_INSTALL}") from None
        if str(error.name).startswith("hloc."):
            raise HlocError(
                f"The installed hloc has no module {error.name}: check the name, or update hloc if "
                f"it is old: {HOW_TO_INSTALL}"
            ) from None
        raise HlocError(f"hloc needs {error.name}, which is not installed.") from None
    except Exception as error:  # of any kind, such as a ValueError of another NumPy
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise HlocError(
            f"hloc.{name} cannot be imported ({reason}): its libraries do not fit each other, "
            "often torchvision and torch."
        ) from error


def run_module(name: str, arguments: list[str]) -> None:
    """Run the command line of the module `hloc.<name>` with the plug-in registered.

    Args:
        name: of the module within hloc.
        arguments: of its command line.

    Raises:
        EdmHlocError: hloc cannot be imported or has no such module, or the module has no command
            line or fails.
    """
    register()
    module = import_hloc(name)
    path = getattr(module, "__file__", None)
    statements = ast.parse(Path(path).read_text("utf-8")).body if path else []
    main = [s for s in statements if isinstance(s, ast.If) and "__main__" in ast.unparse(s.test)]
    if not main:
        raise EdmHlocError(f"hloc.{name} is no command: it has no part for `python -m`.")
    for breakage in about_to_happen(name, arguments):
        logger.warning("%s %s", breakage.problem, breakage.remedy)
    # Run only this part, in the namespace of the imported module: run as a program,
    # hloc.match_dense would define its presets again, without ours.
    code = compile(ast.Module([*main[0].body], type_ignores=[]), str(path), "exec")
    sys.argv = [f"hloc.{name}", *arguments]
    try:
        exec(code, dict(vars(module)))
    except EdmHlocError:
        raise
    except Exception as error:  # hloc hardly checks its arguments
        logging.getLogger(__name__).info("Where hloc failed:", exc_info=True)
        reason = f"{type(error).__name__}: {error}".strip()
        if "Traceback" in reason:  # of a worker process that loads images
            reason = reason.splitlines()[-1]
        raise EdmHlocError(
            f"hloc.{name} failed ({reason}). Check its arguments; edm-hloc doctor lists what is "
            f"known to be broken in it, and edm-hloc hloc -v {name} … shows where it failed."
        ) from error


def _model_class(
    base: type, path: str, class_name: str, matcher: MatcherName, weights: str | None
) -> type:
    """A subclass of hloc's `BaseModel` that wraps one of our matchers.

    Args:
        base: `BaseModel`.
        path: of the module that hloc looks for the class in.
        class_name: name of the class.
        matcher: name of the matcher.
        weights: default weights; None: the best on this computer.
    """

    class Model(base):
        default_conf: ClassVar = {
            "weights": weights,
            "match_threshold": None,
            "max_num_matches": None,
            "refine": "none",
            "network_size": None,
        }
        required_inputs: ClassVar = ["image0", "image1"]

        def _init(self, conf: dict[str, Any]) -> None:
            self.matcher = _make_matcher(matcher, {**conf, "weights": conf["weights"] or weights})
            self.cache: OrderedDict[bytes, Features] = OrderedDict()
            logger.info("Weights %s, on %s", self.matcher.info.weights, self.matcher.info.device)

        def _forward(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            """Grey images (1, 1, H, W) in [0, 1] → keypoints0/1 (M, 2) in pixels, scores (M,)."""
            found = self.matcher.match(self._encode(data["image0"]), self._encode(data["image1"]))
            return {name: torch.from_numpy(array) for name, array in found.arrays().items()}

        def _encode(self, image: torch.Tensor) -> Features:
            # hloc loads an image again for each of its pairs, on its device; our matchers take
            # images on the CPU.
            image = image.cpu()
            key = hashlib.sha1(image.numpy().tobytes()).digest() + repr(image.shape).encode()
            if key not in self.cache:
                height, width = image.shape[-2:]
                photo = NetworkImage(image[0], PixelTransform((1.0, 1.0)), (width, height))
                try:
                    self.cache[key] = self.matcher.encode(photo)
                except ValueError as error:
                    raise EdmHlocError(
                        f"{class_name} cannot use an image that hloc has loaded ({error}): in the "
                        'preset, "preprocessing" must have "grayscale": True and "dfactor": '
                        f"{self.matcher.info.preprocessing.divisor}."
                    ) from error
                used = sum(features.nbytes for features in self.cache.values())
                while used > _CACHE_BYTES and len(self.cache) > 2:
                    used -= self.cache.popitem(last=False)[1].nbytes
            self.cache.move_to_end(key)
            return self.cache[key]

    Model.__name__ = Model.__qualname__ = class_name
    Model.__module__ = path  # hloc only considers classes that the module itself defines
    return Model


def _make_matcher(name: MatcherName, conf: dict[str, Any]) -> Matcher:
    check_range("match_threshold", conf["match_threshold"], 0, 1)  # by hloc's names for them
    check_range("max_num_matches", conf["max_num_matches"], 1)
    options: dict[str, Any] = {
        "weights": conf["weights"],
        "threshold": conf["match_threshold"],
        "topk": conf["max_num_matches"],
    }
    if name == "edm" and conf["refine"] == "none":
        options["refined"] = "image0"  # as hloc expects
    return load_matcher(name, conf["refine"], conf["network_size"], **options)
