"""Selects the pairs to match: by themselves, all, in order, by retrieval, from a list or model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.settings import check_range
from edm_hloc.pairs.automatic import FEW_PHOTOS, PARTNERS, RANKED, AllOfFew, AutomaticPairs
from edm_hloc.pairs.covisibility import from_model
from edm_hloc.pairs.files import among, from_file, read_names
from edm_hloc.pairs.retrieval import BOTH, RetrievalOptions, SimilarPhotos
from edm_hloc.pairs.rules import Pair, exhaustive, in_natural_order, sequential


@dataclass(frozen=True)
class PairSelection:
    """How the pairs are chosen.

    Attributes:
        how: "auto" (all pairs of few photos; of many a few for each photo, chosen while they are
            matched, see `AutomaticPairs`), "exhaustive" (all pairs), "sequential" (photos near each
            other in the natural order of their names, or in that of `image_list`), "retrieval"
            (photos that look alike), or the path of a list of pairs.
        model: COLMAP model; its images that see most points in common are paired instead.
        partners: number of partners of each photo, for "auto", `model` and "retrieval"; None for 10
            for "auto", and else 20.
        retrieval: source of the global descriptors, for "auto" and "retrieval": see
            `RetrievalOptions`.
        overlap: number of following photos each photo is paired with, for "sequential".
        loop_step: every so many photos are also paired with one another, to close loops, for
            "sequential"; None for no loops.
        image_list: file with one name a line, of the photos to use, in the order in which they
            were taken; None for all photos.

    Raises:
        EdmHlocError: a number is below 1.
    """

    how: str = "auto"
    model: Path | None = None
    partners: int | None = None
    retrieval: str = BOTH
    overlap: int = 10
    loop_step: int | None = None
    image_list: Path | None = None

    def __post_init__(self) -> None:
        for name in ("partners", "overlap", "loop_step"):
            check_range(f"PairSelection.{name}", getattr(self, name), 1)

    def photos(self, names: Sequence[str]) -> list[str]:
        """Those of the photos that the selection uses, in its order.

        Raises:
            EdmHlocError: the list of images cannot be read, or names a photo that is not there.
        """
        if self.image_list is not None:
            return read_names(self.image_list, names)
        sequential = self.model is None and self.how == "sequential"
        return in_natural_order(names) if sequential else list(names)


def select_pairs(
    image_root: Path, names: Sequence[str], selection: PairSelection
) -> list[Pair] | SimilarPhotos:
    """The selected pairs of photos, or the photos among which retrieval is to find them.

    Args:
        image_root: folder of the photos, for the message.
        names: of the photos, relative to it, as `PairSelection.photos` orders them.
        selection: how they are paired.

    Raises:
        EdmHlocError: fewer than two photos, or a file that cannot be used.
    """
    how, partners = selection.how, selection.partners or 20
    few = selection.partners is None and len(names) <= FEW_PHOTOS
    pairs: list[Pair]
    if selection.model is not None:
        pairs = among(names, from_model(selection.model, partners), selection.model)
    elif how == "retrieval":
        photos = SimilarPhotos(tuple(names), RetrievalOptions(selection.retrieval, partners))
        photos.check()
        return photos
    elif how == "auto" and few:
        pairs = AllOfFew(exhaustive(names))
    elif how == "auto":
        options = RetrievalOptions(selection.retrieval, RANKED)
        chosen = AutomaticPairs(tuple(names), options, selection.partners or PARTNERS)
        chosen.check()
        return chosen
    elif how == "exhaustive":
        pairs = exhaustive(names)
    elif how == "sequential":
        pairs = sequential(names, selection.overlap, selection.loop_step)
    else:
        pairs = from_file(Path(how), names)
    if not pairs:
        raise EdmHlocError(f"There is no pair to match: {image_root} holds {len(names)} photo(s).")
    return pairs
