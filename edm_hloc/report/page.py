"""`OUT/report.html`: everything needed to judge a run, in one file that works without network."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edm_hloc.base.files import write_whole
from edm_hloc.base.process import format_duration
from edm_hloc.base.version import __version__
from edm_hloc.report.advice import Advice, advise, plural
from edm_hloc.report.collect import RunFacts, collect
from edm_hloc.report.histograms import histogram
from edm_hloc.report.model_pictures import draw_model
from edm_hloc.report.payload import Payload, make_payload
from edm_hloc.report.scene import Scene

logger = logging.getLogger(__name__)

NAME = "report.html"

_STAGES = {
    "descriptors": "Descriptors for retrieval",
    "model keypoints": "Keypoints of the model",
    "matching": "Matching",
    "keypoints": "Keypoints",
    "database": "Verification",
    "model": "Mapping",
    "localization": "Poses",
}
_TITLES = {
    "reconstruction": "Reconstruction",
    "triangulation": "Points for known poses",
    "matching": "Matching",
    "localization": "Localization",
}


def make_report(out: Path, images: Path | None = None) -> Path:
    """Makes the page of a run, finished or not; the path of the page.

    Args:
        out: the run's folder.
        images: folder of its photos, if they have moved.

    Raises:
        EdmHlocError: there is no run in `out`, or the page cannot be written.
    """
    out = Path(out)
    facts = collect(out, images)
    payload = make_payload(facts)
    path = out / NAME
    write_whole(path, render(facts, payload).encode("utf-8", "replace"))
    return path


def render(facts: RunFacts, payload: Payload) -> str:
    """The page's HTML."""
    advice = advise(facts, payload.photos)
    payload.data["hasModel"] = bool(facts.registered)
    sections = [
        ("advice", "What stands out", _advice(facts, advice)),
        ("queries", "Queries", _queries(facts)),
        ("model", "Model", _model(payload)),
        ("photos", "Photos", _photos(facts)),
        ("graph-section", "Match graph", _graph(facts, payload)),
        ("pairs", "Pairs", _pairs(facts, payload)),
        ("numbers", "Distributions", _histograms(facts)),
        ("run", "Run", _run(facts, payload)),
    ]
    shown = [(key, title, body) for key, title, body in sections if body]
    nav = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in shown)
    body = "".join(
        f'<section id="{key}" aria-label="{title}"><h2>{title}</h2>{body}</section>'
        for key, title, body in shown
    )
    name = _name(facts)
    title = f"{_TITLES[facts.kind]} of {name}" if facts.kind != "matching" else f"Matching, {name}"
    data = json.dumps(payload.data, separators=(",", ":")).replace("<", "\\u003c")
    scripts = [_static("page.js")]
    if payload.scene is not None:
        scripts.insert(0, _static("three.min.js"))
    # only these scripts run, whatever a photo is called
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
    policy = (
        f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {hashes}; "
        "base-uri 'none'; form-action 'none'"
    )
    made = time.strftime("%Y-%m-%d %H:%M")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} – edm_hloc report</title>\n"
        f'<link rel="icon" href="data:,">\n<style>{_static("page.css")}</style>\n</head>\n<body>\n'
        f'<header class="wrap"><div class="line"><h1>{escape(title)}</h1>'
        f'<span class="badge {facts.status}">{facts.status}</span></div>'
        f'<p class="soft small">edm_hloc {escape(__version__)}, page made {made}</p>'
        f"{_headline(facts)}</header>\n"
        f'<nav aria-label="Sections"><div class="wrap">{nav}</div></nav>\n'
        f'<main class="wrap">{body}</main>\n'
        f'<footer><div class="wrap">Made by edm_hloc {escape(__version__)}. The 3D view '
        "is drawn by three.js (MIT).</div></footer>\n"
        '<dialog id="photo-dialog" aria-label="Photo"></dialog>\n'
        f'<script type="application/json" id="run-data">{data}</script>\n'
        + "".join(f"<script>{script}</script>\n" for script in scripts)
        + "</body>\n</html>\n"
    )


def _static(name: str) -> str:
    return files("edm_hloc.report").joinpath("static", name).read_text("utf-8")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _name(facts: RunFacts) -> str:
    """What was reconstructed or localized, in a few words."""
    if facts.dataset:
        return facts.dataset
    path = Path(facts.settings.get("queries") or facts.settings.get("images") or facts.out)
    generic = {"images", "images_upright", "photos", "query", "queries"}
    return "/".join(path.parts[-2:]) if path.name.lower() in generic else path.name or str(path)


# --------------------------------------------------------------------------- headline, advice


def _headline(facts: RunFacts) -> str:
    tiles: list[tuple[str, str]] = []
    statistics = facts.results.get("mapped", {}).get("statistics", {})
    if facts.kind == "localization":
        localized = sum(answer.status == "localized" for answer in facts.queries)
        high = sum(answer.confidence == "high" for answer in facts.queries)
        total = len(facts.queries)
        if total:
            tiles += [
                ("Localized", f"{localized:,}<small> of {total:,} queries</small>"),
                ("High confidence", f"{high:,}"),
            ]
            inliers = [a.inliers for a in facts.queries if a.status == "localized"]
            errors = [a.median_error for a in facts.queries if a.median_error is not None]
            if inliers:
                tiles.append(("Inliers, median", f"{np.median(inliers):,.0f}"))
            if errors:
                tiles.append(
                    ("Reprojection error, median", f"{np.median(errors):.2f}<small> px</small>")
                )
    else:
        if facts.registered or facts.kind != "matching":
            photos = len(facts.names) + len(set(facts.skipped) - set(facts.names))
            tiles.append(
                ("In the model", f"{len(facts.registered):,}<small> of {photos:,} photos</small>")
            )
        if facts.registered:
            tiles.append(("Points", f"{len(facts.points):,}"))
            length, error = (
                statistics.get("mean_track_length"),
                statistics.get("mean_reprojection_error"),
            )
            if length is not None:
                tiles.append(("Track length, mean", f"{length:.2f}"))
            if error is not None:
                tiles.append(("Reprojection error, mean", f"{error:.2f}<small> px</small>"))
    if len(facts.pairs) and facts.kind != "localization":
        if facts.verified:
            good = int((facts.inliers >= facts.min_inliers).sum())
            tiles.append(
                ("Verified", f"{good:,}<small> of {plural(len(facts.pairs), 'pair')}</small>")
            )
        else:
            tiles.append(
                (
                    "Matched",
                    f"{len(facts.pairs):,}<small> of {plural(facts.listed, 'pair')}</small>",
                )
            )
    seconds = sum(seconds for _, seconds, _ in _stages(facts))
    if seconds:
        tiles.append(("Time", escape(format_duration(seconds))))
    peak = facts.record.get("peak_memory_mib")
    if peak:
        tiles.append(("Peak memory", f"{peak / 1024:.1f}<small> GiB</small>"))
    return (
        '<dl class="facts">'
        + "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in tiles)
        + "</dl>"
    )


def _advice(facts: RunFacts, advice: Sequence[Advice]) -> str:
    items = []
    if facts.error:
        items.append(_item("bad", f"The run failed. {facts.error}", ()))
    if facts.unfinished:
        text = " ".join(facts.unfinished)
        if not facts.error:
            text = f"The run is not finished. {text} The command that began it goes on from there."
            items.append(_item("warning", text, ()))
    items += [_item(a.level, a.text, a.photos) for a in advice]
    items += [
        _item("warning", f"Not in this page, since it could not be read: {problem}", ())
        for problem in facts.problems
    ]
    return f'<ul class="advice">{"".join(items)}</ul>' if items else ""


def _item(level: str, text: str, photos: Sequence[str]) -> str:
    listed = ""
    if photos:
        names = ", ".join(escape(name) for name in photos[:500])
        more = f" and {len(photos) - 500:,} more" if len(photos) > 500 else ""
        summary = plural(len(photos), "photo")
        listed = f"<details><summary>{summary}</summary>{names}{more}</details>"
    return f'<li class="{level}">{escape(text)}{listed}</li>'


# --------------------------------------------------------------------------- drawn by the script


def _model(payload: Payload) -> str:
    scene = payload.scene
    if scene is None:
        return ""
    notes = [note for note in payload.notes if "3D view" in note]
    colour = "" if scene.points.colors.std() > 0 else " Scans have no colours here."
    return (
        '<p class="hint">Drag to turn, click and then scroll to zoom, right button or two fingers '
        "to move. Point at a camera for its name; click it to see its photo.</p>"
        '<div class="bar">'
        '<button type="button" data-view="overview">Overview</button>'
        '<button type="button" data-view="front">Front</button>'
        '<button type="button" data-view="side">Side</button>'
        '<button type="button" data-view="top">Top</button></div>'
        '<div class="viewer" id="viewer"><div class="stage" id="stage">'
        '<div class="key" id="stage-key"></div></div>'
        '<aside class="card panel" id="panel" aria-label="Chosen camera" hidden></aside></div>'
        '<div class="bar"><label>Points <input id="point-size" type="range" min="1" max="6" '
        'step="0.5" value="2" aria-label="Size of points"></label>'
        '<label>Cameras <input id="camera-size" type="range" min="-4" max="4" step="0.5" value="0" '
        'aria-label="Size of cameras"></label>'
        '<label><input id="show-cameras" type="checkbox" checked> show cameras</label>'
        '<label>Seen by at least <input id="tracks" type="range" min="2" max="10" step="1" '
        'aria-label="Photos that see a point"> <output id="tracks-text"></output></label></div>'
        f"{_poster(scene)}"
        f'<p class="hint">{escape(" ".join(notes) + colour)}</p>'
        "<noscript><p>The 3D view needs JavaScript.</p></noscript>"
    )


def _poster(scene: Scene) -> str:
    """A picture in place of the 3D view, for paper and for browsers without WebGL."""
    if not len(scene.points):
        return ""
    picture = draw_model(scene, "overview", (960, 640))
    ok, data = cv2.imencode(".webp", picture[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, 60])
    if not ok:
        return ""
    text = base64.b64encode(data.tobytes()).decode()
    return f'<img class="poster" alt="The model" src="data:image/webp;base64,{text}">'


def _photos(facts: RunFacts) -> str:
    if not facts.names:
        return ""
    weak = "fewest 3D points first" if facts.registered else "least coverage first"
    return (
        '<p class="hint">Where keypoints lie on each photo: bright cells hold many, dark ones '
        "none. Poses rest on them, so they should be all over the picture.</p>"
        '<div class="bar"><input id="photos-filter" type="search" placeholder="Find a name" '
        'aria-label="Find a name"><label>Order <select id="photos-sort">'
        f'<option value="weak">{weak}</option><option value="coverage">least coverage first'
        '</option><option value="name">by name</option></select></label>'
        '<label><input id="photos-coverage" type="checkbox" checked> coverage</label>'
        '<span class="soft" id="photos-count" role="status"></span></div>'
        '<div class="photos" id="photos-list"></div>'
        '<p><button type="button" id="photos-more" hidden>Show more</button></p>'
    )


def _graph(facts: RunFacts, payload: Payload) -> str:
    graph = payload.data["graph"]
    if graph is None:
        return ""
    what = "verified matches" if facts.verified else "matches"
    if graph["symmetric"]:
        text = f"Every row and column is a photo, every cell a pair, its colour the {what}."
    else:
        text = "Rows are queries, columns photos of the database, colours the inliers."
    order = ""
    if graph["order"]:
        order = (
            '<label>Order <select id="graph-order"><option value="name">by name</option>'
            '<option value="connected">connected photos together</option></select></label>'
        )
    notes = " ".join(note for note in payload.notes if "match graph" in note)
    rows, columns = (-(-graph[side] // graph["joined"]) for side in ("rows", "columns"))
    label = f"Match graph, {rows} by {columns} cells. Arrow keys choose a pair."
    return (
        f'<p class="hint">{text} Click one to see the pair. {escape(notes)}</p>'
        f'<div class="bar">{order}</div><div class="graph"><div>'
        f'<canvas id="graph" tabindex="0" role="img" aria-label="{label}"></canvas>'
        '<div class="legend" id="graph-legend"></div></div>'
        '<div id="graph-pair" aria-live="polite"></div></div>'
    )


def _pairs(facts: RunFacts, payload: Payload) -> str:
    if not payload.data["gallery"]:
        return ""
    rejected = ""
    if facts.verified:
        rejected = (
            '<label><input id="show-rejected" type="checkbox"> also show rejected matches, '
            "in red</label>"
        )
    return (
        '<div class="bar"><span id="gallery-legend"></span>'
        f'{rejected}</div><div id="gallery"></div>'
    )


def _queries(facts: RunFacts) -> str:
    if not facts.queries:
        return ""
    heads = [
        ("name", "Query", ""),
        ("pose", "Confidence", ""),
        ("inliers", "Inliers", "num"),
        ("ratio", "of all", "num"),
        ("error", "Error, px", "num"),
        ("position", "± position", "num"),
        ("rotation", "± degrees", "num"),
    ]
    cells = "".join(
        f'<th scope="col" data-sort="{key}" class="{kind}"><button type="button">{text}</button>'
        "</th>"
        for key, text, kind in heads
    )
    return (
        '<p class="hint">Open a row to see the query beside the database photo with the most '
        "inliers. The deviations take residuals for independent: they are lower bounds.</p>"
        '<div class="bar"><input id="queries-filter" type="search" placeholder="Find a query" '
        'aria-label="Find a query"><label>Show <select id="queries-status">'
        '<option value="all">all</option><option value="high">high confidence</option>'
        '<option value="low">low confidence</option><option value="none">not localized</option>'
        '</select></label><span class="soft" id="queries-count" role="status"></span></div>'
        '<div class="bar"><span id="queries-legend"></span><label><input id="show-rejected" '
        'type="checkbox"> also show matches that disagree with the pose, in red</label></div>'
        '<div class="table" tabindex="0" role="region" aria-label="Table of queries"><table>'
        f'<thead><tr>{cells}<th scope="col">Best database photo, or reason</th></tr></thead>'
        '<tbody id="queries-body"></tbody></table></div>'
        '<p><button type="button" id="queries-more" hidden>Show more</button></p>'
    )


# --------------------------------------------------------------------------- numbers


def _histograms(facts: RunFacts) -> str:
    parts = []
    if facts.kind == "localization":
        found = [a for a in facts.queries if a.correspondences]
        parts = [
            histogram("Inliers per query", np.array([a.inliers for a in found]), whole=True),
            histogram(
                "Inlier ratio per query", np.array([a.inliers / a.correspondences for a in found])
            ),
            histogram(
                "Reprojection error per query",
                np.array([a.median_error for a in found if a.median_error is not None]),
                unit=" px",
            ),
        ]
    elif len(facts.points):
        parts += [
            histogram("Track length: photos that see a point", facts.points.tracks, whole=True),
            histogram("Reprojection error of points", facts.points.errors, unit=" px"),
        ]
    if len(facts.pairs):
        parts.append(histogram("Matches per pair", facts.matches, whole=True))
        if facts.verified:
            some = facts.matches > 0
            ratio = np.maximum(facts.inliers[some], 0) / facts.matches[some]
            parts.append(histogram("Inlier ratio per pair", ratio))
    return f'<div class="histograms">{"".join(parts)}</div>' if any(parts) else ""


def _stages(facts: RunFacts) -> list[tuple[str, float, float | None]]:
    """Name, seconds and peak memory in MiB so far of each stage."""
    found = []
    records: list[tuple[str, Mapping[str, Any]]] = [("", facts.record)]
    database = facts.out / "sfm" / "run.json"
    if database.is_file():
        with facts.tolerant("Stages of the database"):
            records.insert(0, ("Database: ", json.loads(database.read_text("utf-8"))))
    for prefix, record in records:
        memory = record.get("memory_mib") or {}
        seconds = record.get("seconds") or {}
        order = [*_STAGES, *(set(seconds) - set(_STAGES))]
        for stage in order:
            if stage in seconds:
                name = _STAGES.get(stage, stage)
                if prefix:
                    name = prefix + name.lower()
                if prefix and stage == "model":
                    name = prefix + "triangulation"
                found.append((name, float(seconds[stage]), memory.get(stage)))
    return found


def _run(facts: RunFacts, payload: Payload) -> str:
    parts = [_stage_table(facts)]
    matcher = facts.settings.get("matcher") or {}
    if matcher:
        sha = str(matcher.get("weights_sha256", ""))
        name = ", ".join(
            f"{key} {escape(str(matcher[key]))}"
            for key in ("matcher", "architecture")
            if matcher.get(key) is not None
        )
        parts.append(
            f"<h3>Weights</h3><p>{name}"
            + (f", SHA-256 <code>{escape(sha)}</code>" if sha else "")
            + "</p>"
        )
    parts.append(_skipped(facts))
    notes = [n for n in payload.notes if "3D view" not in n and "match graph" not in n]
    if notes:
        parts.append(f"<h3>Left out of this page</h3><p>{escape(' '.join(notes))}</p>")
    versions = facts.record.get("versions") or {}
    if versions:
        text = ", ".join(f"{escape(str(k))} {escape(str(v))}" for k, v in versions.items())
        parts.append(f"<h3>Versions</h3><p>{text}</p>")
    parts.append(
        "<h3>Settings</h3><details><summary>All settings of the run</summary>"
        f"<pre>{escape(_lines(facts.settings))}</pre></details>"
    )
    results = {k: v for k, v in facts.results.items() if k not in ("missing_scans",)}
    parts.append(
        "<details><summary>All numbers of the run</summary>"
        f"<pre>{escape(_lines(results))}</pre></details>"
    )
    return "".join(parts)


def _stage_table(facts: RunFacts) -> str:
    stages = _stages(facts)
    if not stages:
        return "<p>No stage was finished.</p>"
    most = max(seconds for _, seconds, _ in stages) or 1.0
    with_memory = any(memory for _, _, memory in stages)
    rows = []
    for name, seconds, memory in stages:
        width = 100 * seconds / most
        cell = ""
        if with_memory:
            text = f"{memory / 1024:.2f} GiB" if memory else "–"
            cell = f'<td class="num">{text}</td>'
        time = escape(format_duration(seconds))
        rows.append(
            f'<tr><td>{escape(name)}</td><td class="num">{time}</td>{cell}'
            f'<td class="wide"><span class="share" style="width:{width:.1f}%"></span></td></tr>'
        )
    head = '<th scope="col">Stage</th><th scope="col" class="num">Time</th>'
    if with_memory:
        head += '<th scope="col" class="num">Peak memory by its end</th>'
    return (
        f'<div class="table"><table><thead><tr>{head}<td></td></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _skipped(facts: RunFacts) -> str:
    if not facts.skipped:
        return "<h3>Skipped</h3><p>No photo was skipped.</p>"
    rows = "".join(
        f'<tr><td class="text">{escape(name)}</td><td class="text">{escape(reason)}</td></tr>'
        for name, reason in list(facts.skipped.items())[:500]
    )
    return (
        '<h3>Skipped</h3><div class="table"><table><thead><tr><th scope="col">Photo</th>'
        f'<th scope="col">Why</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _lines(value: Any, prefix: str = "") -> str:
    """Nested settings, one `name: value` a line; long lists cut."""
    if isinstance(value, dict) and value:
        return "\n".join(_lines(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in value.items())
    text = json.dumps(value, ensure_ascii=False, default=str)
    if len(text) > 400:
        text = f"{text[:400]} …"
    return f"{prefix}: {text}"
