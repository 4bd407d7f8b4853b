"""The report in a real browser: Debian's chromium and chromium-driver, driven by selenium."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.report_runs import HOSTILE, UnrelatedMatcher, finished_run, localization_run

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None,
    reason="no chromium and chromedriver here (Debian: apt install chromium chromium-driver)",
)
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    # WebGL without a graphics card
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
)
DESKTOP, PHONE = (1280, 900), (390, 844)

Open = Callable[..., "Browser"]


class Browser:
    """A page that is open."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def js(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def open(self, path: Path, size: tuple[int, int] = DESKTOP, scheme: str = "light") -> Browser:
        width, height = size
        phone = size == PHONE
        emulate = self.driver.execute_cdp_cmd
        emulate(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1 + phone, "mobile": phone},
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        emulate("Emulation.setEmulatedMedia", {"features": [feature]})
        self.driver.get_log("browser")
        self.driver.get(path.resolve().as_uri())
        self.wait("return document.documentElement.dataset.ready === 'yes'")
        return self

    def wait(self, script: str, *arguments: object, seconds: float = 20) -> Any:
        """Until the script gives something true."""
        end = time.monotonic() + seconds
        while not (value := self.js(script, *arguments)):
            assert time.monotonic() < end, script
            time.sleep(0.05)
        return value

    def console(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def click_at(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.driver.execute_cdp_cmd(
                "Input.dispatchMouseEvent",
                {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1},
            )

    def move_to(self, x: float, y: float) -> None:
        self.driver.execute_cdp_cmd(
            "Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x, "y": y}
        )

    def show(self, selector: str) -> None:
        self.js(
            "document.querySelector(arguments[0]).scrollIntoView({behavior: 'instant'})", selector
        )

    def text(self, selector: str) -> str:
        return str(self.js("return document.querySelector(arguments[0]).textContent", selector))

    def drawn(self) -> np.ndarray:
        """(H, W, 4) pixels of the 3D view."""
        width, height, pixels = self.js(
            """
            const { viewer } = window.edmReport;
            const gl = viewer.renderer.getContext();
            viewer.draw();
            const [w, h] = [gl.drawingBufferWidth, gl.drawingBufferHeight];
            const pixels = new Uint8Array(4 * w * h);
            gl.readPixels(0, 0, w, h, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
            let text = "";
            for (let i = 0; i < pixels.length; i += 8192)
              text += String.fromCharCode(...pixels.subarray(i, i + 8192));
            return [w, h, btoa(text)];
            """
        )
        import base64

        return np.frombuffer(base64.b64decode(pixels), np.uint8).reshape(height, width, 4)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in _FLAGS:
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=DRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    yield Browser(driver)
    driver.quit()


@pytest.fixture(scope="module")
def finished(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(scene, tmp_path_factory.mktemp("finished")) / "report.html"


@pytest.fixture(scope="module")
def localized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return localization_run(tmp_path_factory.mktemp("localized")) / "report.html"


def fits(page: Browser) -> bool:
    """Whether nothing is wider than the screen."""
    return bool(page.js("return document.documentElement.scrollWidth <= innerWidth"))


@pytest.mark.parametrize(
    ("run", "size", "scheme"),
    [
        ("finished", DESKTOP, "light"),
        pytest.param("finished", PHONE, "dark", marks=pytest.mark.slow),
        pytest.param("localized", DESKTOP, "dark", marks=pytest.mark.slow),
        ("localized", PHONE, "light"),
    ],
)
def test_pages_draw_without_a_complaint(
    run: str, scheme: str, size: tuple[int, int], browser: Browser, request: pytest.FixtureRequest
) -> None:
    page = browser.open(request.getfixturevalue(run), size, scheme)
    pixels = page.drawn()[..., :3].astype(int)
    background = pixels[0, 0]
    assert (background.mean() > 128) == (scheme == "light")
    different = np.abs(pixels - background).max(axis=2) > 30
    assert 0.01 < different.mean() < 0.9
    # in the middle of the view, not at an edge of it
    rows, columns = np.nonzero(different)
    height, width = different.shape
    assert 0.25 < rows.mean() / height < 0.75
    assert 0.25 < columns.mean() / width < 0.75
    assert fits(page)
    paper = page.js("return getComputedStyle(document.body).backgroundColor")
    channels = [int(c) for c in paper[4:-1].split(",")]
    assert (sum(channels) > 3 * 128) == (scheme == "light")
    # everything that waits for the screen
    page.js("dispatchEvent(new Event('beforeprint'))")
    page.wait("return [...document.images].every((image) => image.complete)")
    broken = "return [...document.images].filter((image) => !image.naturalWidth).length"
    assert page.js(broken) == 0
    if run == "finished":
        assert page.js("return document.querySelectorAll('figure.pair svg path').length") > 100
    assert fits(page)
    assert page.console() == []


def test_a_camera_tells_its_name_and_opens_its_photo(finished: Path, browser: Browser) -> None:
    page = browser.open(finished)
    page.show("#model")
    before = page.drawn()
    for name in HOSTILE[:3]:
        photo = page.js(
            "return edmReport.run.photos.findIndex((photo) => photo.name === arguments[0])", name
        )
        x, y = page.js("return edmReport.viewer.where(arguments[0])", photo)
        page.move_to(x, y)
        assert page.text(".tip") == name
        page.click_at(x, y)
        page.wait("return !document.getElementById('panel').hidden")
        assert page.text("#panel .name") == name
        size = page.wait(
            "const i = document.querySelector('#panel img'); "
            "return i.complete && [i.naturalWidth, i.naturalHeight]"
        )
        assert size == [320, 240]
        assert fits(page)
        page.js("document.querySelector('#panel .close').click()")
        page.wait("return document.getElementById('panel').hidden")
    assert np.abs(before.astype(int) - page.drawn()).mean() < 2
    page.js("edmReport.viewer.select(0); edmReport.viewer.lookFrom(0)")
    page.wait("return document.querySelector('#panel img').complete")
    time.sleep(0.3)
    pixels = page.drawn()[..., :3].astype(int)
    assert (np.abs(pixels - pixels[0, 0]).max(axis=2) > 10).mean() > 0.3  # its photo before the eye
    assert page.console() == []


def test_turning_zooming_and_the_controls(finished: Path, browser: Browser) -> None:
    page = browser.open(finished)
    page.show("#model")
    first = page.drawn().astype(int)

    def changed() -> bool:
        time.sleep(0.15)
        return bool(np.abs(first - page.drawn()).max(axis=2).mean() > 0.5)

    assert not changed()
    for view in ("front", "side", "top"):
        page.js(f"document.querySelector('[data-view={view}]').click()")
        assert changed()
    page.js("document.querySelector('[data-view=overview]').click()")
    assert not changed()
    for control, value in (("point-size", 6), ("camera-size", 4), ("tracks", 4)):
        page.js(
            "const [id, v] = arguments, input = document.getElementById(id); "
            "input.dataset.was = input.value; input.value = v; "
            "input.dispatchEvent(new Event('input'))",
            control,
            value,
        )
        assert changed(), control
        page.js(
            "const input = document.getElementById(arguments[0]); "
            "input.value = input.dataset.was; input.dispatchEvent(new Event('input'))",
            control,
        )
        assert not changed(), control
    # the wheel scrolls the page until the view was clicked
    box = page.js(
        "const b = document.querySelector('#stage').getBoundingClientRect(); return [b.left, b.top]"
    )
    wheel = {"type": "mouseWheel", "x": box[0] + 30, "y": box[1] + 30, "deltaX": 0, "deltaY": 60}
    page.driver.execute_cdp_cmd("Input.dispatchMouseEvent", wheel)
    assert not changed()
    page.show("#model")
    page.click_at(box[0] + 30, box[1] + 30)
    page.driver.execute_cdp_cmd("Input.dispatchMouseEvent", wheel)
    assert changed()
    assert page.console() == []


def test_hostile_names_are_shown_and_do_nothing(finished: Path, browser: Browser) -> None:
    page = browser.open(finished, PHONE)
    page.show("#photos")
    shown = page.js(
        "return [...document.querySelectorAll('#photos-list .name')].map((n) => n.textContent)"
    )
    assert sorted(shown) == sorted(HOSTILE)
    for name in HOSTILE:
        page.js(
            "[...document.querySelectorAll('#photos-list button')]"
            ".find((b) => b.title === arguments[0]).click()",
            name,
        )
        page.wait("return document.getElementById('photo-dialog').open")
        assert page.text("#photo-dialog .name") == name
        # the photo itself is found through its link, whatever its name
        link = page.js("return document.querySelector('#photo-dialog a').href")
        from urllib.parse import unquote, urlparse

        assert Path(unquote(urlparse(link).path)).is_file()
        assert fits(page)
        page.js("document.getElementById('photo-dialog').close()")
    assert page.js("return window.hacked") is None
    assert page.js("return document.querySelectorAll('img[src=x], script').length") == 3
    page.js(
        "const f = document.getElementById('photos-filter'); f.value = '写真'; "
        "f.dispatchEvent(new Event('input'))"
    )
    assert page.text("#photos-count") == "1 of 7 photos"
    assert page.console() == []


def test_policy_stops_scripts_that_are_not_ours(
    finished: Path, tmp_path: Path, browser: Browser
) -> None:
    """Were a name ever written as markup, it would still not run."""
    spoiled = finished.with_name("spoiled.html")
    html = finished.read_text("utf-8").replace(
        "</main>", "<script>window.hacked = 3</script><img src=x onerror='window.hacked=4'></main>"
    )
    spoiled.write_text(html, "utf-8")
    page = browser.open(spoiled)
    assert page.js("return window.hacked") is None
    assert any("Content Security Policy" in message for message in page.console())


def test_match_graph_answers_mouse_and_keys(finished: Path, browser: Browser) -> None:
    page = browser.open(finished)
    page.show("#graph-section")
    left, top, width = page.js(
        "const b = document.getElementById('graph').getBoundingClientRect(); "
        "return [b.left, b.top, b.width]"
    )
    cell = width / 7
    page.move_to(left + 4.5 * cell, top + 2.5 * cell)
    names = sorted(HOSTILE)
    tip = page.text(".tip")
    assert names[2] in tip
    assert names[4] in tip
    assert "verified" in tip
    page.click_at(left + 4.5 * cell, top + 2.5 * cell)
    page.wait("return document.querySelector('#graph-pair figure')?.dataset.pair === '2-4'")
    page.js(
        "document.getElementById('graph').dispatchEvent("
        "new KeyboardEvent('keydown', {key: 'ArrowRight'}))"
    )
    page.wait("return document.querySelector('#graph-pair figure')?.dataset.pair === '2-5'")
    pixels = page.js(
        "const c = document.getElementById('graph'), cell = c.width / 7; "
        "return [...c.getContext('2d').getImageData(0.5 * cell, 1.5 * cell, 1, 1).data]"
    )
    assert pixels[3] == 255
    assert page.console() == []


def test_table_of_queries_sorts_filters_and_opens(localized: Path, browser: Browser) -> None:
    page = browser.open(localized)

    def column(index: int) -> list[str]:
        return list(
            page.js(
                "return [...document.querySelectorAll('#queries-body tr')]"
                ".map((row) => row.children[arguments[0]].textContent)",
                index,
            )
        )

    inliers = [int(text.replace(",", "")) for text in column(2)]
    assert inliers == sorted(inliers)  # the weakest first
    page.js("document.querySelector('th[data-sort=inliers] button').click()")
    assert [int(text.replace(",", "")) for text in column(2)] == inliers[::-1]
    head = "document.querySelector('th[data-sort=inliers]')"
    assert page.js(f"return {head}.getAttribute('aria-sort')") == "descending"
    page.js("document.querySelector('th[data-sort=name] button').click()")
    assert column(0) == sorted(column(0))
    page.js(
        "const f = document.getElementById('queries-filter'); f.value = 'NIGHT'; "
        "f.dispatchEvent(new Event('input'))"
    )
    assert len(column(0)) == 2
    assert all("night" in name for name in column(0))
    assert page.text("#queries-count") == "2 of 4 queries"
    page.js("document.querySelector('#queries-body button').click()")
    assert page.js("return document.querySelectorAll('td.detail path').length") > 20
    rejected = "getComputedStyle(document.querySelector('td.detail .rejected')).display"
    assert page.js(f"return {rejected}") == "none"
    page.js("document.getElementById('show-rejected').click()")
    assert page.js(f"return {rejected}") == "inline"
    page.js("[...document.querySelectorAll('td.detail button')].pop().click()")
    page.wait("return !document.getElementById('panel').hidden")
    assert "night" in page.text("#panel .name")
    assert page.console() == []


def test_page_of_a_failed_run(
    scene: Path, tmp_path: Path, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edm_hloc import cli

    monkeypatch.setattr(cli.options, "make_matcher", lambda args: UnrelatedMatcher(scene))
    assert cli.main(["reconstruct", str(scene / "images"), str(tmp_path / "out")]) == 1
    page = browser.open(tmp_path / "out" / "report.html", PHONE, "dark")
    assert "No model could be made" in page.text(".advice")
    assert fits(page)
    assert page.js("return document.querySelector('#stage')") is None
    assert page.console() == []


def test_without_webgl_there_is_a_picture(finished: Path, browser: Browser) -> None:
    spoil = "HTMLCanvasElement.prototype.getContext = ((old) => function (kind, ...rest) "
    spoil += "{ return kind.startsWith('webgl') ? null : old.call(this, kind, ...rest); })"
    spoil += "(HTMLCanvasElement.prototype.getContext)"
    script = browser.driver.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument", {"source": spoil}
    )
    try:
        page = browser.open(finished)
        assert "cannot draw in 3D" in page.text("#stage")
        assert (
            page.js("return getComputedStyle(document.querySelector('.poster')).display") == "block"
        )
        assert page.js("return document.querySelectorAll('#photos-list button').length") == 7
    finally:
        browser.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)


def test_the_page_of_a_mesh_shows_its_texture_and_colours(browser: Browser, tmp_path: Path) -> None:
    import cv2

    from edm_hloc.report.meshes import WrittenMesh, mesh_page
    from edm_hloc.surface.atlas import TexturedMesh
    from edm_hloc.surface.glb import mesh_glb
    from edm_hloc.surface.ply import Mesh

    # a square of four colours that faces the viewer, and a smaller square below of one
    quarters = np.zeros((64, 64, 3), np.uint8)
    quarters[:32, :32], quarters[:32, 32:] = (200, 30, 30), (30, 200, 30)
    quarters[32:, :32], quarters[32:, 32:] = (30, 30, 200), (180, 180, 40)
    page = cv2.imencode(".jpg", quarters[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    square = np.array([[-1, 0, 0], [1, 0, 0], [1, 2, 0], [-1, 2, 0.0]])
    uv = np.array([[0, 1], [1, 1], [1, 0], [0, 0.0]])
    triangles = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    below = square * [0.5, 0.5, 1] - [0, 2, 0]
    rest = Mesh(below, np.full((4, 3), 188, np.uint8), triangles)
    data = mesh_glb(TexturedMesh(square, uv, [triangles], [page], rest), np.eye(3))
    path = tmp_path / "mesh.html"
    path.write_text(mesh_page(data, "A <b>mesh</b>", WrittenMesh(4, 8, 1200)), "utf-8")
    browser.open(path)
    assert browser.text("h1") == "A <b>mesh</b>"
    assert "4 triangles from 1,200 matches" in browser.text("#facts")
    browser.js("document.querySelector('[data-view=front]').click()")

    def shown(x: float, y: float) -> list[int]:
        """The colour at a point of the plane of the squares, by the perspective of the view."""
        time.sleep(0.3)
        png = np.frombuffer(browser.driver.get_screenshot_as_png(), np.uint8)
        picture = cv2.imdecode(png, cv2.IMREAD_COLOR)[..., ::-1]
        height, width = picture.shape[:2]
        # the middle of the mesh is at (0, 0), and its half diagonal fills half the height
        radius = float(np.hypot(1, 2))
        row = round(height / 2 - y / radius * height / 2)
        return picture[row, round(width / 2 + x / radius * height / 2)].tolist()

    places = {(-0.5, 1.5): (200, 30, 30), (0.5, 1.5): (30, 200, 30), (-0.5, 0.5): (30, 30, 200)}
    for (x, y), colour in places.items():
        assert shown(x, y) == pytest.approx(colour, abs=12)
    assert shown(0.0, -1.5) == pytest.approx([188] * 3, abs=4)
    browser.js("document.getElementById('shade').click()")
    first, second = shown(-0.5, 1.5), shown(0.5, 0.5)
    assert np.ptp(first) <= 2
    assert first == pytest.approx(second, abs=2)
    browser.js("document.getElementById('shade').click()")
    assert shown(-0.5, 1.5) == pytest.approx((200, 30, 30), abs=12)
    # a room is looked into from outside: triangles that face away are not shown
    behind = [triangles[:1], triangles[1:, ::-1]]
    room = TexturedMesh(square, uv, behind, [page, page], rest)
    path.write_text(
        mesh_page(mesh_glb(room, np.eye(3), two_sided=False), "room", WrittenMesh(4, 8, 9)), "utf-8"
    )
    browser.open(path)
    browser.js("document.querySelector('[data-view=front]').click()")
    assert shown(0.5, 0.5) == pytest.approx((180, 180, 40), abs=12)
    nothing = shown(-0.9, -1.5)  # beside the smaller square
    assert shown(-0.5, 1.5) == pytest.approx(nothing, abs=2)
    browser.js("document.getElementById('shade').click()")
    assert shown(-0.5, 1.5) == pytest.approx(nothing, abs=2)
    assert not browser.console()
