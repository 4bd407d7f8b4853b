"""Findings: what in a run needs attention, and what can be done about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edm_hloc.base.log import first_few
from edm_hloc.base.text import plural
from edm_hloc.report.facts import PhotoFacts, RunFacts
from edm_hloc.report.finding import Finding
from edm_hloc.report.odd_cameras import may_share, odd_cameras
from edm_hloc.report.wrong_matches import wrong_matches

# Thresholds of the findings, set on runs of 8 to 29 photos of buildings; docs/report.md lists them.
MIN_POINTS = 100  # 3D points that a registered photo observes
MIN_COVERAGE = 0.25  # share of the coverage grid's cells
MAX_ERROR = 1.2  # mean reprojection error, px of the matcher's input
MAX_TWO_VIEW_SHARE = 0.85  # share of the points with a track length of 2
MIN_INLIER_RATIO = 0.4  # median over the verified pairs
MIN_VERIFIED_SHARE = 0.25  # share of the pairs; only judged from MANY_PAIRS pairs on
MANY_PAIRS = 400


def findings(facts: RunFacts, photos: Mapping[str, PhotoFacts]) -> list[Finding]:
    """All findings, the most serious first; a single "good" one if there is no other.

    Args:
        facts: the run.
        photos: statistics of its photos, by name.
    """
    found = [*_general(facts, photos)]
    if facts.kind == "localization":
        found += _localization(facts)
    elif facts.kind != "matching":
        found += _reconstruction(facts, photos)
    if not found and facts.status == "complete":
        found = [Finding("good", _all_well(facts))]
    return sorted(found, key=lambda finding: ("warning", "note", "good").index(finding.level))


def _all_well(facts: RunFacts) -> str:
    if facts.kind == "localization":
        return f"All {len(facts.queries)} queries were localized with high confidence."
    if facts.kind == "matching":
        return "All pairs were matched."
    number = len(facts.registered)
    return f"All {number} photos were registered in one model, and no problem was found."


def _general(facts: RunFacts, photos: Mapping[str, PhotoFacts]) -> Iterator[Finding]:
    if facts.skipped:
        yield Finding(
            "warning",
            f"{plural(len(facts.skipped), 'photo')} could not be read and "
            f"{'was' if len(facts.skipped) == 1 else 'were'} left out. The section Run lists the "
            "reasons.",
            tuple(sorted(facts.skipped)),
        )
    for folder, levels in facts.results.get("matching", {}).get("levels", {}).items():
        if levels is not None:
            where, _, kind = folder.rpartition(" ")
            yield Finding(
                "note",
                f"The photos in {where} hold {kind} values, of which only {levels[0]:.6g} to "
                f"{levels[1]:.6g} are used: these were stretched to black and white, in all of "
                "them alike.",
            )
    posed = {view.name for view in facts.views if view.kind != "database"}
    small = _names(photos, lambda p: p.keypoints > 0 and p.coverage < MIN_COVERAGE)
    small = tuple(name for name in small if name in posed)
    if small:
        yield Finding(
            "note",
            f"The keypoints of {plural(len(small), 'photo')} cover less than "
            f"{MIN_COVERAGE:.0%} of the image. A pose is less accurate if its keypoints are "
            "confined to a part of the image; more overlap with other photos helps.",
            small,
        )
    limit = (facts.settings.get("quantization") or {}).get("max_kps")
    if limit:
        full = _names(photos, lambda p: p.keypoints >= limit)
        if full:
            yield Finding(
                "note",
                f"{plural(len(full), 'photo')} reached the limit of {limit:,} keypoints, so "
                "some matches were discarded. --max-keypoints 0 keeps all and makes a larger "
                "model.",
                full,
            )


def _names(
    photos: Mapping[str, PhotoFacts], wanted: Callable[[PhotoFacts], bool]
) -> tuple[str, ...]:
    return tuple(name for name, photo in photos.items() if wanted(photo))


# --------------------------------------------------------------------------- reconstruction


_MOST_PARTS = 12  # separate models whose size is given


def _reconstruction(facts: RunFacts, photos: Mapping[str, PhotoFacts]) -> Iterator[Finding]:
    yield from wrong_matches(facts)
    if facts.registered:
        yield from _unregistered(facts)
        yield from _quality(facts, photos)
    elif facts.verified and len(facts.names) > 1:
        best = _most_inliers(facts, range(len(facts.names)))
        weak = [n for n, m in best.items() if m < facts.min_inliers]
        if weak and len(weak) < len(facts.names):
            yield Finding(
                "warning",
                f"{plural(len(weak), 'photo shares', 'photos share')} fewer than "
                f"{facts.min_inliers} verified matches with any other photo.",
                tuple(weak),
            )
    if facts.verified and len(facts.pairs) >= MANY_PAIRS:
        share = float((facts.inliers > 0).mean())
        if share < MIN_VERIFIED_SHARE:
            yield Finding(
                "note",
                f"Only {share:.0%} of the {len(facts.pairs):,} pairs have a two-view geometry. "
                "Fewer pairs give the same model in less time: --pairs sequential for photos taken "
                "one after the other, or a list of pairs from retrieval.",
            )
    ratio = _inlier_ratios(facts)
    if len(ratio) >= 3 and float(np.median(ratio)) < MIN_INLIER_RATIO:
        yield Finding(
            "warning",
            f"The median inlier ratio of the verified pairs is {np.median(ratio):.0%}, which is "
            "low. Repetitive structures, moving objects and strong distortion are possible causes: "
            "look at the borderline pairs, give known intrinsics (--known), or match at a larger "
            "--resize.",
        )


def _most_inliers(facts: RunFacts, others: Iterable[int]) -> dict[str, int]:
    """By photo the largest number of verified matches with one of the photos `others`."""
    best = np.zeros(len(facts.names), np.int64)
    allowed = np.zeros(len(facts.names), bool)
    allowed[list(others)] = True
    for side in (0, 1):
        this, that = facts.pairs[:, side], facts.pairs[:, 1 - side]
        use = allowed[that]
        np.maximum.at(best, this[use], facts.inliers[use])
    return dict(zip(facts.names, best.tolist(), strict=True))


def _inlier_ratios(facts: RunFacts) -> np.ndarray:
    """Inlier ratios of the verified pairs, (V,)."""
    some = (facts.inliers > 0) & (facts.matches > 0)
    return facts.inliers[some] / facts.matches[some]


def _other_models(sizes: Sequence[int], photos: tuple[str, ...]) -> Iterator[Finding]:
    """What is said of the photos in other separate models than the largest."""
    if photos:
        first = ", ".join(map(str, sizes[:_MOST_PARTS]))
        more = f" and {len(sizes) - _MOST_PARTS:,} more" if len(sizes) > _MOST_PARTS else ""
        yield Finding(
            "warning",
            f"{plural(len(photos), 'photo is', 'photos are')} in other models: separate ones of "
            f"{first} photos{more} were found, as not enough connects them. This page shows the "
            "largest, the others are in model_parts. If they are of one place, take photos that "
            "connect them, or match more pairs.",
            photos,
        )


def _unregistered(facts: RunFacts) -> Iterator[Finding]:
    mapped = facts.results.get("mapped", {})
    elsewhere = tuple(mapped.get("elsewhere", ()))
    yield from _other_models(mapped.get("components", []), elsewhere)
    inside_some = {*facts.registered, *elsewhere, *facts.skipped}
    missing = [name for name in facts.names if name not in inside_some]
    if not missing:
        return
    inside = [i for i, name in enumerate(facts.names) if name in facts.registered]
    to_model, to_any = _most_inliers(facts, inside), _most_inliers(facts, range(len(facts.names)))
    weak = tuple(n for n in missing if to_any[n] < facts.min_inliers)
    apart = tuple(n for n in missing if n not in weak and to_model[n] < facts.min_inliers)
    near = tuple(n for n in missing if n not in weak and n not in apart)
    if weak:
        yield Finding(
            "warning",
            f"{plural(len(weak), 'photo')} did not register: "
            f"{'it shares' if len(weak) == 1 else 'they share'} fewer than {facts.min_inliers} "
            "verified matches with any other photo. Take photos in between, match at a larger "
            "--resize, or check that they show the same place.",
            weak,
        )
    if apart:
        yield Finding(
            "warning",
            f"{plural(len(apart), 'photo')} did not register: they match one another, but not "
            "enough any registered photo. Take photos that connect the two groups, or match more "
            "pairs.",
            apart,
        )
    if near:
        most = max(to_model[name] for name in near)
        yield Finding(
            "warning",
            f"{plural(len(near), 'photo')} did not register, though there are enough verified "
            f"matches with a registered photo (up to {most:,}). Either too few of them have a 3D "
            "point, or the focal length is wrong: give known intrinsics (--known), try --mapper "
            "global, or match more pairs.",
            near,
        )


def _quality(facts: RunFacts, photos: Mapping[str, PhotoFacts]) -> Iterator[Finding]:
    yield from _mapping(facts)
    yield from _tracks(facts.results.get("tracks", {}))
    yield from _accuracy(facts, photos)
    yield from _calibration(facts)
    if copies := tuple(facts.results.get("copies", ())):
        told = f"Copies of other photos, byte by byte: {plural(len(copies), 'photo')}."
        left_out = facts.results.get("copies_left_out")
        advice = "they are left out" if left_out else "leave them out"
        yield Finding("note", f"{told} They tell nothing new: {advice}.", copies)
    yield from _cameras(facts)


def _mapping(facts: RunFacts) -> Iterator[Finding]:
    """What the mapper did without, and cameras whose poses are in doubt."""
    mapped = facts.results.get("mapped", {})
    turned = mapped.get("turned", ())
    if turned:
        yield Finding(
            "warning",
            f"{plural(len(turned), 'photo was', 'photos were')} taken from one place by a camera "
            "that only turned and match no photo from elsewhere: they hold no depth and give no "
            "model. Add photos from places in between.",
            tuple(turned),
        )
    flat = tuple(mapped.get("undistorted_photos", ()))
    if flat or mapped.get("undistorted"):
        several = flat and len(mapped["components"]) > 1
        of = f"of {plural(len(flat), 'photo')} " if several else ""
        yield Finding(
            "note",
            f"No believable model {of}was found with lens distortion, which was left at zero. Most "
            "often the photos do not determine it, as when all are taken while moving straight "
            "ahead, or each by another camera. For an accurate model calibrate the camera and give "
            "its intrinsics (--known), or add photos that look to the side.",
            flat,
        )
    few = tuple(name for name, points in facts.registered.items() if points < MIN_POINTS)
    if few:
        yield Finding(
            "warning",
            f"{plural(len(few), 'photo observes', 'photos observe')} fewer than {MIN_POINTS} 3D "
            "points: inspect such a pose before relying on it.",
            few,
        )
    far = tuple(mapped.get("statistics", {}).get("far_from_all", ()))
    if far:
        yield Finding(
            "warning",
            f"{plural(len(far), 'camera is', 'cameras are')} more than thirty times as far from "
            "all others as these are from their middle. Unless a photo was taken from so far "
            "away, its pose and focal length are wrong: leave it out, or give known intrinsics "
            "(--known).",
            far,
        )


def _tracks(tracks: Mapping[str, Any]) -> Iterator[Finding]:
    """What the refinement of tracks (`TrackSummary`, as a dict) found."""
    late = tuple(tracks.get("registered", ()))
    if late:
        yield Finding(
            "note",
            f"{plural(len(late), 'photo')} could not be registered by the mapper and came in after "
            "the points were refined.",
            late,
        )
    lenses = [
        f"The lens of {plural(lens['photos'], 'photo')} was calibrated by them, with a principal "
        "point of its own and two coefficients of distortion (RADIAL). It is "
        f"{lens['changed']:.1f} ± {lens['sigma']:.1f} px off what a centred principal point and "
        "one coefficient make of it."
        for lens in tracks.get("lenses", ())
    ]
    for text in first_few(lenses, "of other photos in the same way."):
        yield Finding("note", text[0].upper() + text[1:])
    doubtful = tracks.get("doubtful", {})
    if doubtful:
        name, most = max(doubtful.items(), key=lambda item: item[1])
        yield Finding(
            "warning",
            f"The position of {plural(len(doubtful), 'photo')} is several times as uncertain as "
            f"that of the others, of {name} {most:.2g} % of the extent (1 σ): few points, or "
            "points in a corner, hold it.",
            tuple(doubtful),
        )


def _accuracy(facts: RunFacts, photos: Mapping[str, PhotoFacts]) -> Iterator[Finding]:
    """Large reprojection errors, and short tracks."""
    matched = (facts.settings.get("matcher") or {}).get("resize_max")
    sizes = [max(p.size) for name, p in photos.items() if p.size and name in facts.registered]
    error = float(np.nanmean(facts.points.errors)) if len(facts.points) else 0.0
    shrunk = max(1.0, float(np.median(sizes)) / matched) if sizes and matched else 1.0
    if error / shrunk > MAX_ERROR:
        yield Finding(
            "warning",
            f"The mean reprojection error is {error:.2f} px, or {error / shrunk:.2f} px at the "
            "size of the matcher's input, which is large. A wrong camera model is a possible "
            "cause: try --camera-mode per-image or --camera-model OPENCV, or give known intrinsics "
            "(--known).",
        )
    two = float((facts.points.tracks <= 2).mean()) if len(facts.points) else 0.0
    if two > MAX_TWO_VIEW_SHARE and len(facts.registered) > 4:
        yield Finding(
            "warning",
            f"{two:.0%} of the points are observed by only two photos, which constrain the "
            "model weakly. More photos with more overlap, or more pairs, give longer tracks.",
        )


def _calibration(facts: RunFacts) -> Iterator[Finding]:
    if odd := odd_cameras(facts):
        shared = ", or let photos of one camera share their intrinsics (--camera-mode single)"
        yield Finding(
            "warning",
            f"The calibration of {plural(len(odd), 'camera')} looks wrong, for example {odd[0]}. "
            f"Give known intrinsics (--known){shared if may_share(facts) else ''}.",
        )


def _cameras(facts: RunFacts) -> Iterator[Finding]:
    """Photos of a fisheye lens, who shares a camera, and focal lengths that are not known."""
    mapped = facts.results.get("mapped", {})
    circular = tuple(facts.results.get("image_circles", ()))
    if circular:
        yield Finding(
            "warning",
            "Photos show a bright disc before black. If a fisheye lens has drawn it, the model is "
            "wrong: --camera-model OPENCV_FISHEYE is for such photos.",
            circular,
        )
    imported = facts.results.get("imported", {})
    unknown = imported.get("images", 0) - imported.get("prior_focal", 0)
    if own := tuple(mapped.get("own_camera_photos", ())):
        yield Finding(
            "note",
            f"Each of {plural(len(own), 'photo')} has a camera of its own: their EXIF data are "
            "equal, but they do not fit one camera, as if some were cropped or zoomed.",
            own,
        )
    shared = tuple(mapped.get("one_camera_photos", ()))
    if shared:
        cameras = mapped.get("shared_cameras")
        number = plural(cameras, "camera") if cameras else "cameras"
        yield Finding(
            "note",
            f"{plural(len(shared), 'photo')} share {number}, as their EXIF data give no focal "
            "length and a camera for each explains them no better. If they are of more cameras or "
            "were zoomed, --camera-mode per-image keeps them apart.",
            shared,
        )
    elif imported.get("may_share_cameras"):
        yield Finding(
            "warning",
            f"Each of {plural(unknown, 'photo')} has a camera of its own, because their EXIF data "
            "give no focal length, and no camera was found to fit all of one "
            "size. If one took them without zooming, --camera-mode single is right; if several "
            "did, a folder for each and --camera-mode per-folder. Both give a better model.",
        )
    elif unknown > 0:
        yield Finding(
            "note",
            f"The focal length of {plural(unknown, 'photo')} was estimated, because neither "
            "--known nor the EXIF data give it. Known intrinsics make the model more accurate.",
        )


# --------------------------------------------------------------------------- localization


def _localization(facts: RunFacts) -> Iterator[Finding]:
    missing = [a for a in facts.queries if a.status != "localized"]
    thin = [a for a in missing if a.correspondences > 0]
    unmatched = [a for a in missing if a.correspondences == 0]
    if thin:
        yield Finding(
            "warning",
            f"{plural(len(thin), 'query', 'queries')} could not be localized although "
            f"correspondences were found: no pose has {facts.min_inliers} inliers. Look at the "
            "pictures: if the database photo shows another place, retrieval has failed "
            "(--retrieval, --retrieved); otherwise try a larger --resize or --ransac.",
            tuple(a.query for a in thin),
        )
    if unmatched:
        yield Finding(
            "warning",
            f"{plural(len(unmatched), 'query', 'queries')} had no correspondence at all. The "
            "table of queries gives the reasons.",
            tuple(a.query for a in unmatched),
        )
    low = tuple(a.query for a in facts.queries if a.confidence == "low")
    if low:
        yield Finding(
            "note",
            f"{plural(len(low), 'query has', 'queries have')} a pose of low confidence: few "
            "inliers, a low inlier ratio, an uncertain rotation or distance, or another pose. "
            "Inspect the pictures before relying on such a pose.",
            low,
        )
    elsewhere = tuple(a.query for a in facts.queries if a.elsewhere)
    if elsewhere:
        yield Finding(
            "warning",
            f"{plural(len(elsewhere), 'query', 'queries')} may as well be elsewhere: another pose "
            "explains at least half as much of the photo. Places look alike, or a part of the "
            "model is in it twice.",
            elsewhere,
        )
    scans = facts.results.get("missing_scans", [])
    if scans:
        yield Finding(
            "warning",
            f"{plural(len(scans), 'database photo has', 'database photos have')} no scan that can "
            "be used, and therefore no 3D points.",
            tuple(scans),
        )
