"""`OUT/report.html`: everything needed to judge a run, in one file that works without network."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import cv2
import jinja2

from edm_hloc.base.files import check_kinds, refuse_foreign, write_whole
from edm_hloc.base.text import format_duration, plural
from edm_hloc.base.version import __version__
from edm_hloc.report import histograms
from edm_hloc.report.collect import collect
from edm_hloc.report.earth import draw_map, place_figures
from edm_hloc.report.facts import RunFacts
from edm_hloc.report.finding import Finding
from edm_hloc.report.findings import findings
from edm_hloc.report.headline import headline
from edm_hloc.report.model_pictures import draw_model
from edm_hloc.report.packing import pack
from edm_hloc.report.payload import Payload, make_payload
from edm_hloc.report.run_details import read_stages, setting_lines
from edm_hloc.report.scene import Scene

NAME = "report.html"
_MARK = " – edm_hloc report</title>".encode()  # in every page

_MAX_LISTED = 500  # photos named in a finding or in the table of skipped ones
_TITLES = {
    "reconstruction": "Reconstruction of {}",
    "triangulation": "Points for known poses of {}",
    "matching": "Matching, {}",
    "localization": "Localization of {}",
}


class _Section(NamedTuple):
    anchor: str
    title: str
    template: str
    shown: bool


def make_report(out: Path, images: Path | None = None) -> Path:
    """Makes the page of a run, finished or not.

    Args:
        out: output folder of the run.
        images: folder of its photos, if they have moved.

    Returns:
        The path of the page.

    Raises:
        EdmHlocError: there is no run in `out`, or the page cannot be written, or there is a page
            of somebody else.
    """
    out = Path(out)
    facts = collect(out, images)
    payload = make_payload(facts)
    path = out / NAME
    check_kinds(out, [NAME])
    refuse_foreign(path, _MARK)
    write_whole(path, render(facts, payload).encode("utf-8", "replace"))
    return path


@functools.cache
def environment() -> jinja2.Environment:
    """The templates of the page. Every value is escaped unless the template marks it as safe."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("edm_hloc.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    templates.filters["duration"] = format_duration
    templates.filters["plural"] = plural
    templates.filters["thousands"] = "{:,}".format
    templates.filters["setting_lines"] = setting_lines
    return templates


def render(facts: RunFacts, payload: Payload) -> str:
    """The page's HTML."""
    stages = read_stages(facts)
    place, earth_map = _on_earth(facts)
    listed = _findings(facts, payload)
    drawn = histograms.run_histograms(facts)
    sections = [
        _Section("advice", "Findings", "findings.html.j2", bool(listed)),
        _Section("queries", "Queries", "queries.html.j2", bool(facts.queries)),
        _Section("model", "Model", "model.html.j2", payload.scene is not None),
        _Section("earth", "On Earth", "earth.html.j2", bool(place)),
        _Section("photos", "Photos", "photos.html.j2", bool(facts.names)),
        _Section("graph-section", "Match graph", "graph.html.j2", bool(payload.data["graph"])),
        _Section("pairs", "Pairs", "pairs.html.j2", bool(payload.data["gallery"])),
        _Section("numbers", "Distributions", "histograms.html.j2", bool(drawn)),
        _Section("run", "Run", "run.html.j2", True),
    ]
    scripts = [static("common.js") + static("page.js")]
    if payload.scene is not None:
        scripts.insert(0, static("three.min.js"))
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            title=_TITLES[facts.kind].format(_name(facts)),
            version=__version__,
            made=time.strftime("%Y-%m-%d %H:%M"),
            policy=content_security_policy(scripts),
            css=static("page.css"),
            scripts=scripts,
            sections=[section for section in sections if section.shown],
            facts=facts,
            payload=payload,
            headline=headline(facts, sum(stage.seconds for stage in stages)),
            findings=listed,
            poster=_poster(payload.scene),
            colourless=_is_colourless(payload.scene),
            histograms=drawn,
            place=place,
            map=earth_map,
            axis=histograms,
            stages=stages,
            results={k: v for k, v in facts.results.items() if k != "missing_scans"},
            max_listed=_MAX_LISTED,
        )
    )


def static(name: str) -> str:
    """The text of one of the files of the pages."""
    return files("edm_hloc.report").joinpath("static", name).read_text("utf-8")


def _on_earth(facts: RunFacts) -> tuple[list[tuple[str, str]], str]:
    """What is said of a model's place, and its map; empty where it was not looked for."""
    place = facts.results.get("georeferenced")
    figures: list[tuple[str, str]] = []
    drawn = ""
    with facts.noting_errors("On Earth"):
        if place:
            figures = place_figures(place)
        if place and place["used"]:
            centres = {v.name: v.centre for v in facts.views}
            drawn = draw_map(centres, place)
    return figures, drawn


def content_security_policy(scripts: Sequence[str]) -> str:
    """Lets only these scripts run, whatever text the page holds, and nothing be loaded."""
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
    return (
        f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {hashes}; "
        "base-uri 'none'; form-action 'none'"
    )


def _sha256(text: str) -> str:
    return pack(hashlib.sha256(text.encode()).digest())


def _name(facts: RunFacts) -> str:
    """The dataset, or the last part of the path of the photos that says something."""
    if facts.dataset:
        return facts.dataset
    path = Path(facts.settings.get("queries") or facts.settings.get("images") or facts.out)
    generic = {"images", "images_upright", "photos", "query", "queries"}
    return "/".join(path.parts[-2:]) if path.name.lower() in generic else path.name or str(path)


def _findings(facts: RunFacts, payload: Payload) -> list[Finding]:
    """The run's error or what is unfinished, the findings, and what could not be read."""
    listed = []
    if facts.error:
        listed.append(Finding("bad", f"The run failed. {facts.error}"))
    elif facts.unfinished:
        missing = " ".join(facts.unfinished)
        text = f"The run is not finished. {missing} The same command continues it."
        listed.append(Finding("warning", text))
    listed += findings(facts, payload.photos)
    listed += [
        Finding("warning", f"Missing from this page because it could not be read: {problem}")
        for problem in facts.problems
    ]
    return listed


def _is_colourless(scene: Scene | None) -> bool:
    """Whether all points have the same colour, as those of scans have."""
    return scene is not None and len(scene.points) > 0 and not scene.points.colors.std() > 0


def _poster(scene: Scene | None) -> str | None:
    """A WebP picture in base64 that replaces the 3D view on paper and without WebGL."""
    if scene is None or not len(scene.points):
        return None
    picture = draw_model(scene, "overview", (960, 640))
    ok, data = cv2.imencode(".webp", picture[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, 60])
    return pack(data.tobytes()) if ok else None
