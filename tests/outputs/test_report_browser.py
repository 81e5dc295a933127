"""The report in a real browser, opened from a disk: it plays, filters, and can be read and used by everybody."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.reports import PROMPT, asked, make, standing
from ti2v_dist.evaluation import METRICS
from ti2v_dist.outputs.curves import Drift
from ti2v_dist.outputs.page import AT_A_TIME, report_page
from ti2v_dist.outputs.report import write_report
from ti2v_dist.outputs.standing import UnderWay

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium here; Debian: apt-get install chromium")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; it is in the extra dev")

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=document.title='owned'> \u202edlrow\" '"
DRIFTING = {"calm": 0, "wild": 9, "slow": 2}
JOINS = '[{"color":6.2,"frame":9,"motion":0.01,"sharpness":1.1}]'
FAILURE = {"line": 3, "id": "bad", "prompt": HOSTILE, "label": "drawn", "error_type": "ImageError", "attempts": 1}
SUMMARY = {
    "usage": {"device_seconds": 7384.2, "worker_losses": 2},
    "this_life": {"percentiles_s": {"denoise": {"p50": 0.0123, "p95": 0.2, "p99": 93.0}}},
    "classes": [{"device": "cpu"}],
}


@dataclass
class Browser:
    """Chromium, and all that it has complained of."""

    chromium: Any
    output: Path
    wrong: list[str] = field(default_factory=list)
    asked_for: set[str] = field(default_factory=set)

    def open(self, width: int = 1280, scheme: str = "light", path: Path | None = None) -> Any:
        """A page in a window of its own."""
        context = self.chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda said: self.wrong.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("requestfailed", lambda request: self.wrong.append(f"{request.url}: {request.failure}"))
        page.on("request", lambda request: self.asked_for.add(request.url.partition(":")[0]))
        page.goto((path or self.output / "report" / "index.html").as_uri())
        return page


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    output = tmp_path_factory.mktemp("browser") / "out"
    rows = [make(output, name, f"a {name} light", step=step, label="world") for name, step in DRIFTING.items()]
    rows[0] |= {"sampler": "clip", "seams": JOINS}
    rows += [make(output, "hostile", HOSTILE, frames=3, label="drawn"), make(output, "long", "a dog, " * 200, frames=3)]
    going = [UnderWay(asked("half", PROMPT), 7)]
    stands = standing(rows, [{**FAILURE, "error_message": "no picture: <b>"}], going, SUMMARY)
    write_report(str(output), stands)
    with playwright.sync_playwright() as driver:
        # Chromium's sandbox takes no root.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield Browser(chromium, output)
        chromium.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Any]:
    """The page; at the end of each test nothing went wrong, and nobody but the disk was asked for anything."""
    browser.wrong.clear()
    page = browser.open()
    yield page
    page.context.close()
    assert browser.wrong == []
    assert browser.asked_for <= {"file", "data"}


def ids(page: Any) -> list[str]:
    return page.eval_on_selector_all("article", "cards => cards.map(card => card.dataset.id)")


def test_every_video_loads_and_plays(page: Any) -> None:
    playing = """async videos => Promise.all(videos.map(async video => {
        await video.play();
        await new Promise(done => video.addEventListener("timeupdate", done, { once: true }));
        return [video.readyState >= 2, video.videoWidth, video.muted, video.error, video.loop];
    }))"""
    assert page.eval_on_selector_all("video", "videos => videos.map(video => video.preload)") == ["none"] * 5
    assert page.eval_on_selector_all("video", playing) == [[True, 64, True, None, True]] * 5
    posters = """videos => Promise.all(videos.map(async video => {
        const image = new Image(); image.src = video.poster; await image.decode(); return image.naturalWidth;
    }))"""
    assert page.eval_on_selector_all("video", posters) == [64] * 5


def test_filters_filter_together_and_say_how_many(page: Any) -> None:
    everything = ["bad", "calm", "half", "hostile", "long", "slow", "wild"]
    assert ids(page) == everything
    page.select_option("#label", "world")
    assert ids(page) == ["calm", "slow", "wild"]
    page.fill("#words", "LIGHT wi")
    assert ids(page) == ["wild"]
    assert page.inner_text("#count") == "1 of 7 videos"
    page.select_option("#status", "failed")
    assert ids(page) == []
    page.fill("#words", "")
    page.select_option("#label", label="all")
    assert ids(page) == ["bad"]
    page.select_option("#status", "in progress")
    assert ids(page) == ["half"]
    assert "8 of 20 frames" in page.inner_text("article")
    assert page.eval_on_selector("progress", "bar => [bar.value, bar.max]") == [8, 20]
    page.select_option("#status", "")
    page.select_option("#label", label="(none)")
    assert ids(page) == ["half", "long"]


def test_the_most_drifted_come_first_and_those_without_a_curve_last(page: Any) -> None:
    page.select_option("#order", label="drift: color")
    assert ids(page)[:2] == ["wild", "slow"]
    assert set(ids(page)[-2:]) == {"bad", "half"}
    drawn = page.eval_on_selector_all("article:first-child polyline", "all => all.map(one => one.getBBox().height)")
    assert len(drawn) == len(METRICS)
    assert max(drawn) == 100


def test_joins_stand_beside_their_video_and_what_they_are_above(page: Any) -> None:
    told = page.eval_on_selector_all("article:has(.seams)", "all => all.map(one => one.dataset.id)")
    assert told == ["calm"]
    colour, motion = page.eval_on_selector_all(".seams li", "all => all.map(one => one.textContent)")
    assert "the colour jumps: 6.2 times" in colour
    assert "the picture halts" in motion
    page.click("text=What the curves say")
    assert page.is_visible("text=Where one joins the next")


def test_no_text_is_markup(page: Any) -> None:
    assert page.title() == "Run report: 7 videos"
    for video_id in ("hostile", "bad"):
        assert page.inner_text(f"[data-id={video_id}] .prompt bdi") == HOSTILE.strip()
    assert page.eval_on_selector_all("img", "all => all.map(one => one.getAttribute('src'))") == ["contact_sheet.png"]
    assert "no picture: <b>" in page.inner_text("#failures")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_contrast(browser: Browser, scheme: str) -> None:
    page = browser.open(scheme=scheme)
    page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true; })")
    found = page.evaluate(CONTRASTS)
    assert len(found) > 60
    assert [text for text in found if text[0] < 4.5] == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(15, 17, 20)") == (scheme == "dark")
    page.context.close()


def test_a_phone_scrolls_one_way_and_a_thumb_meets_its_target(browser: Browser) -> None:
    page = browser.open(width=360)
    page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    wide = "all => all.map(one => one.getBoundingClientRect()).filter(box => box.right > 360.5 || box.left < 0).length"
    assert page.eval_on_selector_all("body *:not(option):not(svg *)", wide) == 0
    targets = """all => all.filter(one => one.checkVisibility()).map(one => [one.outerHTML.slice(0, 60), ...(box =>
        [Math.round(box.width), Math.round(box.height)])(one.getBoundingClientRect())])"""
    found = page.eval_on_selector_all("a, button, input, select, summary", targets)
    assert len(found) > 10
    assert [target for target in found if target[1] < 44 or target[2] < 44] == []
    page.context.close()


def test_a_keyboard_is_enough(page: Any) -> None:
    focus = "document.activeElement.id || document.activeElement.tagName"
    for _ in range(8):
        page.keyboard.press("Tab")
        if page.evaluate(focus) == "words":
            break
    page.keyboard.type("light")
    assert ids(page) == ["calm", "slow", "wild"]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    for name in ("status", "label", "order"):
        page.keyboard.press("Tab")
        assert page.evaluate(focus) == name
    page.keyboard.type("drift: color")
    assert ids(page) == ["wild", "slow", "calm"]
    page.keyboard.press("Tab")
    assert page.evaluate(focus) == "VIDEO"
    page.keyboard.press("Space")
    page.wait_for_function("!document.activeElement.paused")


def test_ten_thousand_videos_are_drawn_by_and_by(browser: Browser, tmp_path: Path) -> None:
    one = make(tmp_path, "v", frames=3, size=16)
    rng, rows = np.random.default_rng(0), []
    drifts: dict[str, Drift] = {}
    for number in range(10_000):
        name = f"v{number:05d}"
        rows.append({**one, "id": name, "text": f"a light number {number}", "file_name": f"{name}.mp4"})
        points: list[float] = [0.0, *rng.uniform(0, 1, 31).tolist()]
        drifts[name] = Drift(dict.fromkeys(METRICS, points[-1]), dict.fromkeys(METRICS, points))
    html = report_page(standing(rows), set(), drifts, set(), has_sheet=False)
    path = tmp_path / "index.html"
    path.write_text(html)
    assert len(html) < 12_000_000
    page = browser.open(path=path)
    assert ids(page) == [f"v{number:05d}" for number in range(AT_A_TIME)]
    page.focus("#more")
    page.keyboard.press("Enter")
    assert len(ids(page)) == 2 * AT_A_TIME
    assert page.evaluate("document.activeElement.dataset.id") == f"v{AT_A_TIME:05d}"
    page.fill("#words", "number 9876")
    assert ids(page) == ["v09876"]
    page.fill("#words", "")
    page.select_option("#order", label="drift: identity")
    most = max(drifts, key=lambda name: drifts[name].moved("identity"))
    assert ids(page)[0] == most
    assert len(ids(page)) == AT_A_TIME
    page.context.close()


CONTRASTS = """() => {
  const parts = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const over = (top, below) => [0, 1, 2].map((n) => top[n] * top[3] + below[n] * (1 - top[3])).concat(1);
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const ground = (node) => parts(getComputedStyle(node).backgroundColor);
  const behind = (node) => node ? over(ground(node), behind(node.parentElement)) : [255, 255, 255, 1];
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), node = walker.currentNode.parentElement;
    if (!text || !node.checkVisibility() || ["SCRIPT", "STYLE", "NOSCRIPT"].includes(node.tagName)) continue;
    const back = behind(node), [a, b] = [light(over(parts(getComputedStyle(node).color), back)), light(back)];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), text.slice(0, 40)]);
  }
  return found;
}"""
"""WCAG's contrast of every visible text with what lies behind it, and the text."""
