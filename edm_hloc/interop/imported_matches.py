"""The matches of another program as a matcher: every later step runs on them as on our own.

Points of dense matchers are sampled anew in every pair, so that no two pairs share a keypoint.
Refinement (`RefinedMatcher`) brings them to the corners of the photos, where they repeat.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.base.frames import Origin, PixelTransform, inside, origin_shift, upright_size
from edm_hloc.base.log import warn_once
from edm_hloc.base.matches import Matches
from edm_hloc.base.progress import track
from edm_hloc.images.decode import exif_orientation, open_header, stored_size
from edm_hloc.images.load import NetworkImage
from edm_hloc.interop.match_files import PairSource, sources_in
from edm_hloc.matchers.base import Features, Matcher, MatcherInfo, Preprocessing
from edm_hloc.matchers.loading import check_device, default_device
from edm_hloc.pairs.names import NameFinder
from edm_hloc.pairs.rules import Pair, names_in
from edm_hloc.refinement.config import RefinementConfig
from edm_hloc.refinement.load import Refinement
from edm_hloc.refinement.matcher import RefinedMatcher

_SEPARATORS = re.compile(r"__|[-/_ ,+&]|\.vs\.|_to_|-to-")
_OUTSIDE = 0.02  # share of a photo's points that may lie outside of it, as those of warped grids do
_MARGIN = 1.0  # px beyond the outermost pixel centres, which is no more than a wrong frame gives
_UNUSED = 0.6  # of both sides of every photo: matches that reach no further are of reduced copies


class PhotoFrame(NamedTuple):
    """What places points in a photo.

    Attributes:
        stored: (width, height) in pixels as stored.
        orientation: EXIF's.
    """

    stored: tuple[int, int]
    orientation: int


@dataclass(frozen=True)
class PointFrame:
    """The pixels that given points are in.

    Attributes:
        origin: whether (0, 0) is the centre or the outer corner of the top-left pixel.
        upright: the points are of the photos as their EXIF orientation shows them, which OpenCV
            does by itself; otherwise of the pixels as stored, which Pillow gives.
    """

    origin: Origin = "centre"
    upright: bool = False

    def to_photo(
        self, points: np.ndarray, photo: PhotoFrame, size: tuple[int, int] | None
    ) -> np.ndarray:
        """Points in pixels of the photo as stored, hloc's frame.

        Args:
            points: (N, 2) in this frame.
            photo: the photo.
            size: (width, height) of the copy that they are of; None: of the photo itself.
        """
        turn = photo.orientation if self.upright else 1
        shown = upright_size(photo.stored, turn)
        copy = size or shown
        scale = shown[0] / copy[0], shown[1] / copy[1]
        transform = PixelTransform(scale, turn, photo.stored)
        return transform.to_original(points - origin_shift(self.origin))


class GivenMatches:
    """The pairs that files hold, by the names of the photos.

    Args:
        path: folder or file, see `match_files`.
        photos: names of all photos.
        frame: the pixels that the points are in.
        leave_out: see `sources_in`.

    Attributes:
        path, frame: as given.
        content: a digest of all matches, with the photos and sizes that they are of, once `check`
            has read them.

    Raises:
        EdmHlocError: there are no such files, or none names two of the photos.
    """

    def __init__(
        self,
        path: Path,
        photos: Sequence[str],
        frame: PointFrame,
        leave_out: Sequence[Path] = (),
    ) -> None:
        self.path, self.frame = path, frame
        self.content = ""
        self._sources: dict[Pair, list[tuple[PairSource, bool]]] = defaultdict(list)
        self._names = _PairNames(photos)
        unknown = []
        sources = sources_in(path, leave_out)
        found = [(source, *self._names.of(source)) for source in sources]
        surely = {frozenset(pair) for _, pair, sure in found if pair and sure}
        for source, pair, sure in found:
            if pair is None or (not sure and frozenset(pair) in surely):
                unknown.append(source)
                continue
            swapped = pair[::-1] in self._sources
            self._sources[pair[::-1] if swapped else pair].append((source, swapped))
        if not self._sources:
            raise EdmHlocError(
                f"None of the {len(sources):,} files or groups of {path} names two of the "
                f"{len(photos):,} photos: call them A__B for the photos A and B, or put the names "
                f"image0 and image1 into them. The first is {unknown[0].label!r}, the first photo "
                f"{photos[0]!r}."
            )
        if unknown:
            warn_once(
                f"{path}: {len(unknown):,} of {len(sources):,} files or groups do not name two of "
                f"the photos, such as {unknown[0].label!r}; they are left out."
            )

    @property
    def pairs(self) -> list[Pair]:
        return list(self._sources)

    def matches(self, pair: Pair, headers: tuple[PhotoFrame, PhotoFrame]) -> Matches:
        """The matches of a pair in pixels of the photos as stored; scores are at most 1."""
        found = []
        for source, swapped in self._sources[pair]:
            given = source.read()
            sizes = given.sizes or (None, None)
            first, second = headers[::-1] if swapped else headers
            points0 = self.frame.to_photo(given.points0, first, sizes[0])
            points1 = self.frame.to_photo(given.points1, second, sizes[1])
            kept = inside(points0, *first.stored, 0.5) & inside(points1, *second.stored, 0.5)
            scores = given.scores[kept] / max(1.0, float(given.scores.max(initial=1.0)))
            arrays = (points0[kept], points1[kept], scores.clip(min=0.0))
            matches = Matches(*(np.asarray(a, np.float32) for a in arrays))
            found.append(matches.swapped() if swapped else matches)
        total = found[0]
        for more in found[1:]:
            total = total.joined(more)
        return total

    def check(self, headers: Mapping[str, PhotoFrame]) -> None:
        """Reads all files once, and compares the points with the sizes of the photos.

        Raises:
            EdmHlocError: a file is damaged, or its points are of other photos, of turned or of
                resized ones.
        """
        digest = hashlib.blake2b(digest_size=16)
        reach = 0.0
        for pair in track(self.pairs, "Reading matches", "pair"):
            for i, (source, swapped) in enumerate(self._sources[pair]):
                given = source.read()
                sizes = given.sizes or (None, None)
                names = pair[::-1] if swapped else pair
                # whose points are whose the content tells better than the file's name
                if given.images and self._names.of_images(given.images) == names[::-1]:
                    self._sources[pair][i] = source, not swapped
                    names = names[::-1]
                digest.update(repr((names, given.sizes)).encode())
                for name, points, size in zip(
                    names, (given.points0, given.points1), sizes, strict=True
                ):
                    digest.update(points.tobytes())
                    photo = headers.get(name)
                    if photo is None:
                        continue  # it is left out later, with its reason
                    self._check_turn(source, name, photo, size)
                    placed = self.frame.to_photo(points, photo, size)
                    if len(placed):
                        self._check_inside(source, name, placed, photo)
                        reach = max(reach, *((placed.max(axis=0) + 1) / photo.stored).tolist())
                digest.update(given.scores.tobytes())
        self.content = digest.hexdigest()
        if 0 < reach < _UNUSED:
            warn_once(
                f"No match of {self.path} reaches beyond {reach:.0%} of the photos' sides: were "
                "they found in reduced copies? Then the result is wrong: multiply the points, or "
                "put the copies' sizes into the files as size0 and size1."
            )

    def _check_turn(
        self, source: PairSource, name: str, photo: PhotoFrame, size: tuple[int, int] | None
    ) -> None:
        shown = upright_size(photo.stored, photo.orientation)
        if size is None or shown == photo.stored:
            return
        taken, other = (shown, photo.stored) if self.frame.upright else (photo.stored, shown)
        # much nearer in shape to the other than to that taken, though copies are rounded; squares
        # are as near to both
        if _off(size, other) < _off(size, taken) / 4:
            how, remedy = "as its EXIF orientation shows it", "give --upright"
            if self.frame.upright:
                how, remedy = (
                    "as it is stored, not turned by its EXIF orientation",
                    "leave --upright out",
                )
            raise EdmHlocError(
                f"{source}: the points of {name} are of {size[0]} × {size[1]} pixels, {how}: "
                f"{remedy}."
            )

    def _check_inside(
        self, source: PairSource, name: str, placed: np.ndarray, photo: PhotoFrame
    ) -> None:
        outside = ~inside(placed, *photo.stored, _MARGIN)
        if outside.mean() <= _OUTSIDE:
            return
        width, height = photo.stored
        exchanged = inside(placed, height, width, _MARGIN).mean() > 1 - _OUTSIDE
        remedy = "give the size of the images that they were found in as size0 and size1"
        if photo.orientation != 1 and exchanged and not self.frame.upright:
            remedy = "the photo is turned by its EXIF orientation: give --upright"
        raise EdmHlocError(
            f"{source}: {outside.mean():.0%} of the points of {name} lie outside of its {width} × "
            f"{height} pixels, up to ({placed[:, 0].max():.0f}, {placed[:, 1].max():.0f}); "
            f"{remedy}."
        )


def _off(size: tuple[int, int], other: tuple[int, int]) -> float:
    """How far two sizes are from being of one shape, as the logarithm of a factor."""
    return abs(math.log(size[0] * other[1] / (size[1] * other[0])))


def photo_frames(root: Path, names: Iterable[str]) -> dict[str, PhotoFrame]:
    """The frames of photos by name; those that cannot be read are left out."""
    frames = {}
    for name in track(list(names), "Reading photo headers", "photo"):
        try:
            with open_header(root / name) as image:
                frames[name] = PhotoFrame(stored_size(image), exif_orientation(image))
        except ImageError:
            continue
    return frames


class _PairNames:
    """Finds the two photos that a text names.

    Each part may be a photo's name with or without its folders and its suffix, with "-" or "_" for
    "/" as in hloc's files. The text is cut where both parts are photos.
    """

    def __init__(self, photos: Sequence[str]) -> None:
        self._finder = NameFinder(photos)
        flat: dict[str, set[str]] = defaultdict(set)
        for name in photos:
            stem = name.rpartition(".")[0] or name
            for text in (name, stem):
                for mark in "-_":
                    flat[text.replace("/", mark)].add(name)
        self._flat = {text: names.pop() for text, names in flat.items() if len(names) == 1}

    def of(self, source: PairSource) -> tuple[Pair | None, bool]:
        """The photos of a file, and whether it surely names these, not others of their names."""
        pair = self.find(source.label)
        if pair is not None:
            return pair, True
        texts = source.read().images
        pair = self.of_images(texts) if texts else None
        if texts is None or pair is None:
            return None, False
        own = (f"/{text}".endswith(f"/{name}") for text, name in zip(texts, pair, strict=True))
        return pair, all(own)

    def find(self, label: str) -> Pair | None:
        found = set()
        for start, end in _cuts(label):
            first, second = self._flat.get(label[:start]), self._flat.get(label[end:])
            if first and second and first != second:
                found.add((first, second))
        if not found:  # other ways of writing names take longer
            for start, end in _cuts(label):
                pair = self.of_images((label[:start], label[end:]))
                if pair is not None:
                    found.add(pair)
        return found.pop() if len(found) == 1 else None

    def of_images(self, texts: tuple[str, str]) -> Pair | None:
        first, second = (self._finder.find_path(text) for text in texts)
        return (first, second) if first and second and first != second else None


def _cuts(label: str) -> list[tuple[int, int]]:
    """Start and end of all separators, those within longer ones included."""
    cuts = {match.span() for match in _SEPARATORS.finditer(label)}
    cuts |= {(i, i + 1) for i, mark in enumerate(label) if mark in "-/_ ,+&"}
    return sorted((a, b) for a, b in cuts if a > 0 and b < len(label))


@dataclass(frozen=True)
class ImportConfig:
    """How matches are imported.

    Attributes:
        frame: the pixels that the points are in.
        refine: "photometric" brings the matches to the corners of the photos, where those of all
            pairs meet, and aligns the photos around them; "none" takes them as they are.
        resize: longest side of the photos in which they are refined, in pixels.
        device: where they are refined; None for the fastest.
    """

    frame: PointFrame = field(default_factory=PointFrame)
    refine: Refinement = "photometric"
    resize: int = 1024
    device: str | None = None


def load_imported(
    path: Path,
    image_root: Path,
    photos: Sequence[str],
    config: ImportConfig,
    leave_out: Sequence[Path] = (),
) -> tuple[Matcher, list[Pair]]:
    """A matcher that gives the matches of files, and the pairs that it has matches of.

    Args:
        path: folder or file, see `match_files`.
        image_root: folder of the photos.
        photos: their names.
        config: how the matches are imported.
        leave_out: folders in `path` that are not searched, such as that of the output.

    Raises:
        EdmHlocError: as `GivenMatches` and `GivenMatches.check`; or there is no such device.
    """
    if config.device is not None:
        check_device(config.device)
    given = GivenMatches(path, photos, config.frame, leave_out)
    given.check(photo_frames(image_root, names_in(given.pairs)))
    matcher: Matcher = ImportedMatcher(given, image_root, config)
    if config.refine == "photometric":
        matcher = RefinedMatcher(matcher, RefinementConfig())
    return matcher, given.pairs


class ImportedMatcher(Matcher):
    """Gives the matches of files; knows photos by the files that they are loaded from.

    Args:
        given: the matches, checked.
        image_root: folder of the photos.
        config: `resize` and `device` count here.
    """

    def __init__(self, given: GivenMatches, image_root: Path, config: ImportConfig) -> None:
        self.given = given
        self._name_of = {image_root / name: name for pair in given.pairs for name in pair}
        place = torch.device(config.device or default_device())
        self.info = MatcherInfo(
            "imported",
            Preprocessing(resize_max=config.resize),
            weights=given.path.name,
            device=place,
            threads=torch.get_num_threads() if place.type == "cpu" else 1,
        )

    @property
    def provenance(self) -> Mapping[str, str | int | float | bool | None]:
        return {
            "matcher": "imported",
            "imported_from": self.given.path.name,
            "imported_content": self.given.content,
            "origin": self.given.frame.origin,
            "upright": self.given.frame.upright,
            "resize_max": self.info.preprocessing.resize_max,
        }

    def encode(self, image: NetworkImage) -> Features:
        assert image.path is not None
        frame = PhotoFrame(image.original_size, image.exif_orientation)
        return Features((self._name_of[image.path], frame), image.transform, 1)

    def match_batch(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        return [self._matches(*pair) for pair in pairs]

    def match_pixels(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        return [
            Matches(
                first.transform.to_network(found.keypoints0),
                second.transform.to_network(found.keypoints1),
                found.scores,
            )
            for (first, second), found in zip(pairs, self.match_batch(pairs), strict=True)
        ]

    def _matches(self, first: Features, second: Features) -> Matches:
        (name0, frame0), (name1, frame1) = first.data, second.data
        return self.given.matches((name0, name1), (frame0, frame1))
