"""The summaries that commands print when a run has ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edm_hloc.base.log import first_few
from edm_hloc.base.text import plural

if TYPE_CHECKING:
    from edm_hloc.localization.results import QueryPose
    from edm_hloc.pipelines.run import Run


def print_matching(run: Run) -> None:
    """Print how many pairs were matched, which photos were skipped, and the keypoints."""
    matching, keypoints = run.results["matching"], run.results["keypoints"]
    if "pairs" in run.results:
        chosen = run.results["pairs"]
        rounds = " + ".join(f"{number:,}" for number in chosen["rounds"])
        print(f"Pairs       {rounds} chosen, of which {chosen['connected']:,} agree")
    done = f"{matching['matched']:,} pairs"
    if matching["resumed"]:
        done += f" now, {matching['resumed']:,} before"
    speed = ""
    if matching["matched"]:
        speed = f" ({matching['seconds'] / matching['matched']:.2f} s a pair)"
    print(f"Matched     {done}; {matching['encoded']} photos encoded{speed}")
    skipped = matching["skipped"].values()
    for text in first_few(skipped, f"photos, see {run.path}"):
        print(f"Skipped     {text}")
    if matching["skipped_pairs"]:
        print(f"            with {matching['skipped_pairs']} of the pairs")
    for text in first_few(matching.get("left_out", ()), f"pairs, see {run.path}"):
        print(f"Left out    {text}")
    if matching["rotated"]:
        print(
            f"Upright     {len(matching['rotated'])} turned for matching as their EXIF data say, "
            f"e.g. {matching['rotated'][0]}; keypoints are of the pixels as stored"
        )
    if "masks" in run.results:
        print(f"Masks       of {run.results['masks']['photos']} photos")
        if hidden := run.results.get("masked", {}).get("hidden"):
            names = ", ".join(first_few(hidden, ""))
            print(
                f"            They leave less than 1 % of the matches of {names}:\n"
                "            are black and white exchanged there?"
            )
    per_photo = keypoints["keypoints"] / max(1, keypoints["images"])
    print(f"Keypoints   {per_photo:,.0f} a photo; {keypoints['matches']:,} matches")


def print_reconstruction(run: Run, seconds: float) -> None:
    """Print the summary of a run that made a model; `seconds` is its duration."""
    from edm_hloc.base.text import format_duration

    print_matching(run)
    _print_what_stays(run)
    verified = run.results["verified"]
    print(
        f"Verified    {verified['verified_pairs']:,} of {verified['pairs']:,} pairs, "
        f"{verified['inliers']:,} of {verified['matches']:,} matches"
    )
    if "tracks" in run.results:
        print_tracks(run.results["tracks"])
    _print_model(run)
    _print_left_out(run)
    _print_contradictions(run.results["mapped"])
    _print_cameras(run)
    place = run.results.get("georeferenced")
    if place is not None:
        from edm_hloc.cli.earth import print_place
        from edm_hloc.mapping.georeference import Georeference

        print_place(Georeference.of(place))
    peak = run.peak_memory_mib
    memory = "" if peak is None else f"; peak memory {peak / 1024:.1f} GiB"
    print(f"Time        {format_duration(seconds)}{memory}")
    print(f"Written     {run.out / 'model'} (COLMAP), and beside it the files of every step")


def _print_what_stays(run: Run) -> None:
    """Print what stays at the same pixels of the photos while the rest moves."""
    from edm_hloc.mapping.backdrop import BackdropSummary

    imported = run.results.get("imported", {})
    every = sorted(imported.get("still", ()), key=lambda still: -still["share"])
    for still in every[:3]:  # one for each size of photos
        left, top, right, bottom = still["box"]
        print(
            f"Still       {still['share']:.0%} of the matches stay at the same pixels (x {left} to "
            f"{right}, y {top} to {bottom}) while the rest moves, as of a screen display, a bonnet "
            "or a watermark;"
        )
        done = f"            {imported['left_out']:,} of the matches of all pairs were left out"
        asked = "            they were kept, as they may be the scene: mask (--masks) what is not"
        print(done if still["certain"] else asked)
    backdrop = BackdropSummary.of_run(run.results)
    if backdrop and backdrop.kept:
        a, b = backdrop.kept[0]
        print(
            f"Turned      something between {a} and {b}, before a background that other photos "
            "show as well:\n"
            "            it was taken for the scene; mask (--masks) what is not"
        )
    if backdrop and backdrop.photos:
        print(
            f"Background  of {len(backdrop.photos)} photos stays as it is, or moves as a whole, "
            "while an object turns before it:\n"
            f"            {backdrop.matches:,} matches there were left out"
        )


def _print_model(run: Run) -> None:
    """Print the size and accuracy of the model, and what became of an earlier one."""
    mapped = run.results["mapped"]
    statistics = mapped["statistics"]
    inside = mapped["images"] - len(mapped["unregistered"])  # with points, of known poses
    print(
        f"Model       {inside} of {mapped['images']} photos, "
        f"{statistics['points']:,} points, track length {statistics['mean_track_length']:.2f}, "
        f"reprojection error {statistics['mean_reprojection_error']:.2f} px"
    )
    far = first_few(statistics.get("far_from_all", ()), "photos")
    if far:
        print(
            f"Far away    {', '.join(far)}: more than thirty times as far from all others as these "
            "from\n            their middle. If not taken there, the camera is wrong: leave it out "
            "or give --known"
        )
    extended = run.results.get("extended")
    if extended:
        removed = f", {extended['removed']:,} taken out" if extended["removed"] else ""
        changed = extended.get("changed")  # which earlier versions do not record
        its = f", {changed:,} changed since; its other" if changed else "; its"
        print(
            f"Extended    an earlier model of {extended['before']:,} photos: {extended['added']:,} "
            f"added{removed}{its} cameras moved by at most {100 * extended['moved']:.2g} % of "
            f"their extent and {extended['rotated']:.2g}°"
        )


def _print_left_out(run: Run) -> None:
    """Print which photos and pairs are not in the model, and where they are."""
    from edm_hloc.mapping.output import parts_folder

    mapped = run.results["mapped"]
    elsewhere = set(mapped.get("elsewhere", ()))
    missing = [name for name in mapped["unregistered"] if name not in elsewhere]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        print(f"Missing     {', '.join(missing[:5])}{more}")
    if len(mapped["components"]) > 1:
        sizes = ", ".join(first_few(map(str, mapped["components"]), "", 12))
        others = parts_folder(run.out / "model")
        print(f"Parts       the photos fall into separate models of {sizes}; others in {others}")
    turned = mapped.get("turned")
    if turned:
        print(
            f"Turned      {len(turned)} photos were taken from one place and match no others, so "
            f"they give no model, e.g. {turned[0]}"
        )
    alike = mapped.get("look_alikes")
    if alike:
        print(
            f"Look alike  {len(alike):,} verified pairs, probably of different places, e.g. "
            f"{' and '.join(alike[0])}: left out, as they had folded the model"
        )
        lost = sorted({name for pair in alike for name in pair} & set(missing))
        if lost:
            print(
                f"            and with them {plural(len(lost), 'photo')} that no other pairs "
                f"connect, e.g. {lost[0]}"
            )


def _print_contradictions(mapped: Mapping[str, Any]) -> None:
    """Print how far verified matches contradict the model (`MappingSummary`, as a dict)."""
    from edm_hloc.mapping.contradictions import MIN_FITTING

    misplaced = mapped.get("misplaced")
    if misplaced:
        print(
            f"Misplaced   {plural(len(misplaced), 'photo')}, e.g. {misplaced[0]}, or those beside "
            "them: their matches contradict their model, as where walls look alike"
        )
    fitting = mapped.get("fitting", 1.0)
    if fitting < MIN_FITTING:
        print(
            f"Doubtful    only {fitting:.0%} of the verified matches fit the model, so it is "
            "probably wrong: photos of places that look alike, too few, or too far apart"
        )
    contested = mapped.get("contested")
    if contested:
        print(
            f"Contested   {plural(len(contested), 'photo')}, e.g. {contested[0]}: three times as "
            "many matches contradict their place among the others as connect them with these"
        )


def _print_cameras(run: Run) -> None:
    """Print what is in doubt of the cameras, and which photos are copies."""
    mapped = run.results["mapped"]
    flat = mapped.get("undistorted_photos")
    if flat:
        several = len(mapped["components"]) > 1
        of = f" for {len(flat):,} photos, e.g. {flat[0]}" if several else ""
        print(
            f"Distortion  left at zero{of}: no believable model was found with it. Calibrate the "
            "camera (--known) if you can"
        )
    copies = run.results.get("copies")
    if copies:
        name, original = next(iter(copies.items()))
        print(
            f"Copies      {len(copies):,} of other photos byte by byte, e.g. {name} of {original}: "
            + ("left out" if run.results.get("copies_left_out") else "leave them out")
        )
    circular = run.results.get("image_circles")
    if circular:
        print(
            f"Fisheye     photos show a bright disc before black, e.g. {circular[0]}: if a fisheye "
            "lens drew it,\n            this model is wrong, and --camera-model OPENCV_FISHEYE "
            "right"
        )
    if own := mapped.get("own_camera_photos"):
        print(
            f"Cameras     one for each of {len(own):,} photos, e.g. {own[0]}: their EXIF data are "
            "equal, but they do not\n            fit one, as if some were cropped or zoomed. "
            "--camera-mode single insists on one"
        )
    shared = mapped.get("one_camera_photos")
    if shared:
        cameras = mapped.get("shared_cameras")
        number = plural(cameras, "camera") if cameras else "cameras"
        print(
            f"Cameras     {number} shared by {len(shared):,} photos, e.g. {shared[0]}, as one for "
            "each explains\n            them no better. --camera-mode per-image insists on one for "
            "each"
        )
    elif run.results.get("imported", {}).get("may_share_cameras"):
        print(
            "Cameras     one for each photo, as EXIF data give no focal length, and no single one "
            "was found to\n            fit all. If one took them, --camera-mode single is right; "
            "if several did, a folder\n            for each and --camera-mode per-folder. Both "
            "give a better model"
        )


def print_tracks(tracks: Mapping[str, Any]) -> None:
    """Print what the refinement of tracks (`TrackSummary`, as a dict) made of a model."""
    before, after = tracks["before"], tracks["after"]
    print(
        f"Tracks      {before['points']:,} points, seen {before['mean_track_length']:.2f} times at "
        f"{before['mean_reprojection_error']:.2f} px, became {after['points']:,}, seen "
        f"{after['mean_track_length']:.2f} times at {after['mean_reprojection_error']:.2f} px"
    )
    if tracks["kept"]:
        print(
            f"            {tracks['kept']:,} of them as they were mapped: their photos do not agree"
        )
    if tracks.get("registered"):
        more = first_few(tracks["registered"], "photos")
        print(f"            and could register what the mapper could not: {', '.join(more)}")
    if rigs := tracks.get("rigs"):
        scaled = f"; scaled by {rigs['scale']:.4g} to its distances" if rigs["scale"] != 1 else ""
        print(
            f"Rigs        {rigs['photos']:,} photos in {rigs['frames']:,} frames, which had been "
            f"{rigs['rotation']:.2g}° and {rigs['position']:.2g} %\n            of the extent off "
            f"their rig (medians){scaled}"
        )
        before_rigs, in_rigs = rigs["residuals"]
        print(
            f"            They agree to {in_rigs:.2g} px in their rig, and to {before_rigs:.2g} px "
            "without (medians)"
        )
        if rigs["off"]:
            few = ", ".join(first_few(rigs["off"], "photos"))
            print(
                f"            Far worse in it: {few}. The camera moved in its rig, photos of equal "
                "names\n            are of several moments, or the file is wrong: do without these "
                "photos, or without --rig"
            )
    lenses = [
        f"of {plural(lens['photos'], 'photo')}, calibrated by them: {lens['changed']:.1f} ± "
        f"{lens['sigma']:.1f} px off a centred\n            principal point and one coefficient "
        "of distortion"
        for lens in tracks.get("lenses", ())
    ]
    for text in first_few(lenses, "of other photos", most=2):
        print(f"Lens        {text}")
    if tracks["uncertainty"]:
        position, rotation = tracks["uncertainty"]
        print(
            f"Uncertain   of the middle camera, 1 sigma: {position:.2g} % of the extent, "
            f"{rotation:.2g}°; of each in …_uncertainty.json beside the model"
        )
        doubtful = [f"{name} ({size:.2g} %)" for name, size in tracks["doubtful"].items()]
        for text in first_few(doubtful, "photos"):
            print(f"            far more: {text}")
    else:
        print(
            "Uncertain   of the cameras it is not known: it is computed for up to 400 photos, none "
            "in a rig, whose poses the adjustment determines"
        )
    if tracks.get("point_uncertainty"):
        print(
            "            of the middle point, where it is least sure, "
            f"{tracks['point_uncertainty']:.2g} %; of each in …_points_uncertainty.npz"
        )
    if tracks["blurred"]:
        more = first_few(tracks["blurred"], "photos")
        print(f"            as it was in photos that agree with hardly any: {', '.join(more)}")
    if tracks["unread"]:
        more = first_few(tracks["unread"], "photos")
        print(f"            as they were in photos that cannot be read: {', '.join(more)}")


def print_localization(
    run: Run, answers: Sequence[QueryPose], seconds: float, *, submitted: bool = True
) -> None:
    """Prints how many queries were localized, whose poses are in doubt, and why others have none.

    Args:
        run: record of the run.
        answers: result of each query.
        seconds: wall-clock time of the command.
        submitted: whether queries without a pose get that of a database photo.
    """
    from edm_hloc.base.text import format_duration

    summary = run.results["localized"]
    print(
        f"Localized   {summary['localized']} of {summary['queries']} queries, "
        f"{summary['inliers_median']:,.0f} inliers (median)"
    )
    doubtful = [answer for answer in answers if answer.confidence == "low"]
    if doubtful:
        print(f"Doubtful    {len(doubtful)} of these:")
        worst_first = sorted(doubtful, key=lambda answer: answer.inliers)
        texts = (
            f"{a.query}: {a.inliers:,} inliers of {a.correspondences:,}; {', '.join(a.doubts)}"
            for a in worst_first
        )
        for text in first_few(texts, "queries, see queries.jsonl"):
            print(f"            {text}")
    failed = [answer for answer in answers if answer.status != "localized"]
    if failed:
        text = ", which get the pose of a database photo" if submitted else ""
        print(f"Not found   {len(failed)} of {summary['queries']}{text}:")
        for answer in failed[:10]:
            print(f"            {answer.query}: {answer.reason}")
        if len(failed) > 10:
            print(f"            and {len(failed) - 10} more, see queries.jsonl")
    print(f"Time        {format_duration(seconds)}")
