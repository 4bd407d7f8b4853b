"""The front door in Python: match two photos, reconstruct a folder, localize photos in a model.

    import edm_hloc

    matches = edm_hloc.match("a.jpg", "b.jpg")
    model = edm_hloc.reconstruct("photos", "out")
    poses = edm_hloc.localize("out/model", "photos", "new", "poses")

The command line does the same from the same configurations. Everything here is imported as
`edm_hloc.NAME`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pycolmap
from PIL import Image

from edm_hloc.base.colmap import ModelStatistics, read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.matches import Matches
from edm_hloc.base.settings import as_path, check_type, check_types
from edm_hloc.images.find import find_images
from edm_hloc.images.load import load_image
from edm_hloc.images.pictures import draw_matches
from edm_hloc.interop.targets.registry import photos_of
from edm_hloc.localization.results import QueryPose
from edm_hloc.matchers.base import Matcher, Preprocessing
from edm_hloc.matching.engine import MatchingConfig
from edm_hloc.pairs.retrieval import SimilarPhotos
from edm_hloc.pairs.rules import Pair, unique_pairs
from edm_hloc.pairs.selection import PairSelection, select_pairs
from edm_hloc.pipelines import localize as localization
from edm_hloc.pipelines import reconstruct as reconstruction
from edm_hloc.pipelines.localize import LocalizationConfig
from edm_hloc.pipelines.processes import check_not_importing
from edm_hloc.pipelines.reconstruct import ReconstructionConfig
from edm_hloc.pipelines.run import Run
from edm_hloc.refinement import load
from edm_hloc.report.collect import is_recorded
from edm_hloc.report.meshes import write_mesh
from edm_hloc.report.page import make_report

logger = logging.getLogger(__name__)

Config = TypeVar("Config")


def load_matcher(
    name: str = "edm", *, refine: load.Refinement = "photometric", **settings: Any
) -> Matcher:
    """A matcher, ready to be used for any number of pairs.

    Args:
        name: "edm", "eloftr" or "loftr".
        refine: "photometric" for a second look and refinement by the photos, "none" for the
            network's own matches.
        settings: `weights` (name or path), `resize` (longest side in pixels of the photos for
            matching, 1,024 by default, None for no limit), `network_size` (with refinement, that of
            what the network sees), `threshold`, `topk`, `onnx`, `device`, and the other fields of
            `matchers.base.MatcherConfig` and `matchers.edm.EDMMatcherConfig`. With those named
            here only, worker processes (`MatchingConfig.workers`) can make the same matcher.

    Raises:
        EdmHlocError: no such matcher, setting, device or weights; a setting is of another type; a
            library is not installed.
    """
    device = settings.pop("device", None)
    device = None if device is None else str(device)
    if settings.keys() <= _OF_RECIPES and settings.get("resize", 1024) is not None:
        paths = {"weights", "onnx"} & settings.keys()
        settings |= {key: str(settings[key]) for key in paths if settings[key] is not None}
        return load.MatcherRecipe(name, refine=refine, **settings).load(device)
    if "resize" in settings:
        if "preprocessing" in settings:
            raise EdmHlocError("resize is a part of preprocessing (resize_max): give one of them.")
        settings["preprocessing"] = Preprocessing(resize_max=settings.pop("resize"))
    return load.load_matcher(name, refine, **settings, device=device)


# settings that worker processes can be told
_OF_RECIPES = {field.name for field in fields(load.MatcherRecipe)} - {"matcher", "refine"}


@dataclass(frozen=True, eq=False, repr=False)
class PhotoMatches(Matches):
    """The matches of two photos, which can be drawn.

    Attributes:
        photo0, photo1: the files.
    """

    photo0: Path = Path()
    photo1: Path = Path()

    def __repr__(self) -> str:
        return f"{super().__repr__()} of {self.photo0} and {self.photo1}"

    def draw(self, lines: int = 200) -> Image.Image:
        """The photos side by side with their matches, coloured by score.

        Args:
            lines: maximum number of matches that are drawn as lines; all get dots.

        Raises:
            ImageError: a photo cannot be read any more.
        """
        return Image.fromarray(draw_matches(self.photo0, self.photo1, self, lines=lines))


def match(
    photo0: str | Path, photo1: str | Path, matcher: Matcher | None = None, **settings: Any
) -> PhotoMatches:
    """Matches two photos.

    Args:
        photo0, photo1: the files.
        matcher: of `load_matcher`, to match many pairs; made from `settings` if None.
        settings: of `load_matcher`, for which no `matcher` is given.

    Returns:
        Matches in pixels of the photos as they are stored, hloc's frame.

    Raises:
        EdmHlocError: a photo cannot be read, settings are given for a matcher that is made
            already, or see `load_matcher`.
    """
    if matcher is not None and settings:
        raise EdmHlocError(
            f"{', '.join(settings)}: settings are of `load_matcher`, and the matcher is made "
            "already. Give them there, or leave the matcher out."
        )
    check_type("matcher", matcher, Matcher | None)
    # absolute, wherever the program goes later
    paths = as_path("photo0", photo0).absolute(), as_path("photo1", photo1).absolute()
    matcher = load_matcher(**settings) if matcher is None else matcher
    p = matcher.info.preprocessing
    first, second = (
        matcher.encode(
            load_image(path, resize_max=p.resize_max, divisor=p.divisor, grayscale=p.grayscale)
        )
        for path in paths
    )
    found = matcher.match(first, second)
    return PhotoMatches(found.keypoints0, found.keypoints1, found.scores, *paths)


@dataclass(frozen=True, repr=False)
class Reconstruction:
    """A finished reconstruction.

    Attributes:
        out: folder of the run: `model/` (COLMAP), `database.db`, `features.h5`, `matches.h5`,
            `report.html` and what else the run left.
        run: its record.
        report: the page that shows the run; None if it could not be made.
    """

    out: Path
    run: Run
    report: Path | None

    @property
    def model_path(self) -> Path:
        """Folder of the COLMAP model."""
        return self.out / "model"

    @property
    def model(self) -> pycolmap.Reconstruction:
        """The COLMAP model, read from its folder."""
        return read_model(self.model_path)

    @property
    def statistics(self) -> ModelStatistics:
        """Registered images, points, track length and reprojection error."""
        recorded = self.run.results["mapped"]["statistics"]
        far = tuple(recorded.get("far_from_all", ()))  # a list, if it was read from run.json
        return ModelStatistics(**{**recorded, "far_from_all": far})

    @property
    def unregistered(self) -> tuple[str, ...]:
        """Names of the photos that are not in the model."""
        return tuple(self.run.results["mapped"]["unregistered"])

    def mesh(self, path: str | Path) -> Path:
        """Makes a mesh of what the photos show, from all matches.

        Args:
            path: the file: .glb (glTF, upright, the photos as its texture), .html (a page that
                shows this) or .ply (in the frame of the model, more triangles, a colour for each
                vertex).

        Raises:
            EdmHlocError: see `report.meshes.write_mesh`.
        """
        path = as_path("path", path)
        write_mesh(self.model_path, photos_of(self.model_path), path)
        return path

    def __repr__(self) -> str:
        s, images = self.statistics, self.run.results["mapped"]["images"]
        return (
            f"{s.registered} of {images} photos registered, {s.points:,} points, track length "
            f"{s.mean_track_length:.2f}, reprojection error {s.mean_reprojection_error:.2f} px, "
            f"in {self.model_path}"
        )


def reconstruct(
    photos: str | Path,
    out: str | Path,
    pairs: str | Path | PairSelection | Sequence[Pair] = "auto",
    matcher: Matcher | None = None,
    config: ReconstructionConfig | None = None,
) -> Reconstruction:
    """Reconstructs a folder of photos; an interrupted call is continued by calling it again.

    Photos that were added since then extend the model that is there, in its frame; those that were
    taken out leave it.

    Args:
        photos: the folder, subfolders included.
        out: folder for the model and all other files.
        pairs: which photos are matched: "auto" (all pairs of few photos; of many a few for each,
            chosen while they are matched), "exhaustive", "sequential", "retrieval", the path of a
            list of pairs, a `PairSelection`, or pairs of names relative to `photos`.
        matcher: of `load_matcher`; the default one if None.
        config: keypoints, cameras, mapping, masks, and whether tracks are refined, as by default.

    Raises:
        EdmHlocError: bad input, or no model was found, with the reason; what was computed is kept.
    """
    photos, out = as_path("photos", photos), as_path("out", out).absolute()
    config = _checked(config, ReconstructionConfig)
    check_type("pairs", pairs, str | Path | PairSelection | Collection)
    selected: Sequence[Pair] | SimilarPhotos
    if isinstance(pairs, str | Path | PairSelection):
        selection = pairs if isinstance(pairs, PairSelection) else PairSelection(str(pairs))
        check_types(selection)
        masks = [] if config.masks is None else [config.masks]
        names = selection.photos(find_images(photos, [out, *masks]))
        selected = select_pairs(photos, names, selection)
    else:
        selected = _listed_pairs(pairs)
    matcher = _with_workers(matcher or load_matcher(), config.matching)
    with _reporting_failure(out):
        run = reconstruction.reconstruct(photos, out, selected, matcher, config)
    return Reconstruction(out, run, _report(out))


@dataclass(frozen=True, repr=False)
class Localization(Mapping[str, QueryPose]):
    """The poses of photos in the world of a model, by the photos' names.

    Attributes:
        out: folder of the run, with `poses.txt` and `report.html`.
        answers: the result of each photo.
        report: the page that shows the run; None if it could not be made.
    """

    out: Path
    answers: tuple[QueryPose, ...]
    report: Path | None

    def __getitem__(self, name: str) -> QueryPose:
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, QueryPose]:
        return {answer.query: answer for answer in self.answers}

    def __iter__(self) -> Iterator[str]:
        return iter([answer.query for answer in self.answers])

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def poses(self) -> dict[str, pycolmap.Rigid3d]:
        """cam_from_world of the photos that were localized."""
        return {a.query: a.pose for a in self.answers if a.status == "localized" and a.pose}

    def __repr__(self) -> str:
        high = sum(answer.confidence == "high" for answer in self.answers)
        return (
            f"{len(self.poses)} of {len(self.answers)} photos localized, {high} with high "
            f"confidence, in {self.out}"
        )


def localize(
    model: str | Path,
    photos: str | Path,
    new_photos: str | Path,
    out: str | Path,
    matcher: Matcher | None = None,
    config: LocalizationConfig | None = None,
) -> Localization:
    """Finds where new photos were taken, in the world of a model.

    Args:
        model: folder of a COLMAP model with points, made by any program.
        photos: folder of the model's photos.
        new_photos: folder of the photos to localize.
        out: folder for the poses and all other files.
        matcher: of `load_matcher`; the default one if None.
        config: retrieval, intrinsics, thresholds.

    Raises:
        EdmHlocError: bad input, or none of the photos can be matched; what was computed is kept.
    """
    model, photos = as_path("model", model), as_path("photos", photos)
    new_photos, out = as_path("new_photos", new_photos), as_path("out", out).absolute()
    config = _checked(config, LocalizationConfig)
    matcher = _with_workers(matcher or load_matcher(), config.matching)
    with _reporting_failure(out):
        _, answers = localization.localize_photos(model, photos, new_photos, out, matcher, config)
    return Localization(out, tuple(answers), _report(out))


def _listed_pairs(pairs: Collection[Any]) -> list[Pair]:
    """Pairs as tuples of two names, each once, whatever holds them, such as the lists of JSON.

    Raises:
        EdmHlocError: there is none of two different photos, or one is not two names in an order.
    """
    if isinstance(pairs, np.ndarray):
        pairs = pairs.tolist()
    if len(pairs) == 0:
        raise EdmHlocError("There is no pair to match: the list of pairs is empty.")
    listed: list[Pair] = []
    for pair in pairs:
        names = pair.tolist() if isinstance(pair, np.ndarray) else pair
        two = isinstance(names, Sequence) and not isinstance(names, str) and len(names) == 2
        if not two or not all(isinstance(name, str) for name in names):
            raise EdmHlocError(
                f"pairs holds {pair!r}: each must be the names of two photos, the first and the "
                "second."
            )
        listed.append((str(names[0]), str(names[1])))
    if not (listed := unique_pairs(listed)):
        raise EdmHlocError("pairs holds no pair of two different images.")
    return listed


def _checked(config: Config | None, kind: type[Config]) -> Config:
    """The configuration, by default that of a kind, with no field of a wrong type."""
    config = kind() if config is None else config
    check_type("config", config, kind)
    check_types(config)
    return config


def _with_workers(matcher: Matcher, config: MatchingConfig) -> Matcher:
    """The matcher, with a warning where workers are asked for that cannot make the same one.

    Raises:
        EdmHlocError: it is no matcher, or this is a worker that has begun the script anew.
    """
    if config.workers > 1:
        check_not_importing()  # before it looks like a second process at work in the same folder
    check_type("matcher", matcher, Matcher)
    if matcher.recipe is None and (config.workers > 1 or config.ray is not None):
        logger.warning(
            "This process does all the matching: workers cannot make the same as %s. They can with "
            "a matcher of edm_hloc.load_matcher with no other settings than %s and device.",
            matcher,
            ", ".join(sorted(_OF_RECIPES)),
        )
    return matcher


@contextlib.contextmanager
def _reporting_failure(out: Path) -> Iterator[None]:
    """Makes the page of a run that fails, so that none of an earlier run is taken for its own."""
    try:
        yield
    except EdmHlocError as error:
        if is_recorded(out, error):
            _report(out)
        raise


def _report(out: Path) -> Path | None:
    """Makes the page of a run; what was computed is worth more than the page."""
    try:
        return Path(make_report(out))
    except Exception as error:
        logger.warning(
            "The report of %s could not be made (%s: %s).", out, type(error).__name__, error
        )
        return None
