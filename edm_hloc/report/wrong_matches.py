"""Findings: matches that are not of the scene, and places that look alike."""

from __future__ import annotations

from collections.abc import Iterator

from edm_hloc.base.text import plural
from edm_hloc.mapping.backdrop import BackdropSummary
from edm_hloc.mapping.contradictions import MIN_FITTING
from edm_hloc.report.facts import RunFacts
from edm_hloc.report.finding import Finding

_MOST_STILL = 3  # one for each size of photos
_NAMED_PHOTOS = {
    "misplaced": (
        "The matches of {photos} contradict their model: their strongest pairs do not fit where "
        "they are, as happens where walls look alike. These photos, or those beside them, are "
        "probably in the wrong place. Photos that lead from one such place to the other, or a list "
        "of pairs without those of different places (--pairs FILE), keep them apart."
    ),
    "contested": (
        "{photos} may be on the wrong side of the others: three times as many matches contradict "
        "where they are as connect them with these. That happens with things whose sides look "
        "alike. More photos from between these and the others tell the sides apart."
    ),
}


def wrong_matches(facts: RunFacts) -> Iterator[Finding]:
    """What stays at the same pixels, and photos of different places that a model has at one."""
    yield from _still(facts)
    yield from _conflicts(facts)
    yield from _named_photos(facts)
    yield from _doubtful(facts)


def _still(facts: RunFacts) -> Iterator[Finding]:
    imported = facts.results.get("imported", {})
    every = sorted(imported.get("still", ()), key=lambda still: -still["share"])
    for still in every[:_MOST_STILL]:
        left, top, right, bottom = still["box"]
        done = f"{imported['left_out']:,} such matches were left out."
        asked = (
            "They were kept, as they may be the scene: mask (--masks) what does not belong to it."
        )
        yield Finding(
            "note" if still["certain"] else "warning",
            f"{still['share']:.0%} of the matches stay at the same pixels (x {left} to {right}, "
            f"y {top} to {bottom}) while the rest of the photos moves, as those of a screen "
            f"display, a bonnet or a watermark do. {done if still['certain'] else asked}",
        )
    if len(every) > _MOST_STILL:
        yield Finding(
            "note",
            f"The same holds, for fewer matches, in {plural(len(every) - _MOST_STILL, 'group')} of "
            "photos of other sizes; run.json has them all.",
        )
    backdrop = BackdropSummary.of_run(facts.results)
    if backdrop and backdrop.kept:
        yield Finding(
            "warning",
            f"In {plural(len(backdrop.kept), 'pair')} of photos something has turned before a "
            "background that stays. Other photos show this as well, so it was taken for the scene: "
            "mask (--masks) what does not belong to it.",
            tuple(sorted({name for pair in backdrop.kept for name in pair})),
        )
    if backdrop and backdrop.photos:
        yield Finding(
            "note",
            f"The background of {plural(len(backdrop.photos), 'photo')} stays as it is, or moves "
            "as a whole, while an object turns before it, as on a turntable: the object is "
            f"reconstructed, and {backdrop.matches:,} matches in the background were left out.",
            backdrop.photos,
        )


def _conflicts(facts: RunFacts) -> Iterator[Finding]:
    if alike := facts.results.get("mapped", {}).get("look_alikes"):
        yield Finding(
            "note",
            f"{plural(len(alike), 'verified pair')} of photos look alike but probably do not "
            f"show the same place, as {alike[0][0]} and {alike[0][1]}. They were left out: with "
            "them the model had folded, and photos that show different things lay at one place.",
            tuple(dict.fromkeys(name for pair in alike for name in pair)),
        )
    conflicts = facts.results.get("conflicts") or {}
    if pairs := conflicts.get("pairs"):
        yield Finding(
            "warning",
            f"{len(pairs):,} of {conflicts['compared']:,} pairs of photos that are in the same "
            f"place in the model show different things there, as {pairs[0][0]} and {pairs[0][1]} "
            "do. Either places that look alike, such as equal walls, lie on each other and the "
            "model is wrong: photos that show both places, or a list of pairs without those of "
            "different places (--pairs FILE), keep them apart. Or an object was turned before a "
            "background: then the background is not part of the model, and masks (--masks) leave "
            "it out.",
            tuple(dict.fromkeys(name for pair in pairs for name in pair)),
        )


def _named_photos(facts: RunFacts) -> Iterator[Finding]:
    """The photos that the mapping has named, for each reason."""
    mapped = facts.results.get("mapped", {})
    for reason, text in _NAMED_PHOTOS.items():
        if names := mapped.get(reason):
            photos = plural(len(names), "photo")
            yield Finding("warning", text.format(photos=photos), tuple(names))


def _doubtful(facts: RunFacts) -> Iterator[Finding]:
    fitting = facts.results.get("mapped", {}).get("fitting", 1.0)
    if fitting < MIN_FITTING:
        yield Finding(
            "warning",
            f"Only {fitting:.0%} of the verified matches fit the model; of models that are right "
            "nine in ten do and more. It is probably bent or folded: repeated things, such as rows "
            "of equal windows, were taken for one another, or the photos are too few or too far "
            "apart. Photos from between those that are there tell such things apart.",
        )
