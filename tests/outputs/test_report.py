"""The gallery: made from the mp4s, opens from a disk, shows no prompt as markup."""

import io
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from tests.support.reports import GREY, PROMPT, asked, make, page_cards, page_data, standing
from ti2v_dist.evaluation import METRICS, Metric
from ti2v_dist.outputs import page, report
from ti2v_dist.outputs.codec import read_video
from ti2v_dist.outputs.curves import POINTS, Drift, points_of
from ti2v_dist.outputs.report import PREVIEW_SIDE, SHEET_VIDEOS, write_page
from ti2v_dist.outputs.sheet import CAPTION_LINES, CAPTION_WIDTH, _font, _wrap, contact_sheet, evenly, thumbnail
from ti2v_dist.outputs.standing import UnderWay
from ti2v_dist.storage.urls import open_filesystem


def write_report(output: Path | str, rows: list[dict[str, Any]], **arguments: Any) -> report.Made:
    return report.write_report(str(output), standing(rows), **arguments)


def links(output: Path) -> set[str]:
    """All that the page of an output points at, relative to it."""
    html = (output / "report/index.html").read_text()
    found = set(re.findall(r'(?:href|src)="([^"#][^"]*)"', html)) - {"data:,"}
    return found | {card[kind] for card in page_cards(output).values() for kind in ("file", "poster") if kind in card}


def test_a_report_opens_from_a_disk(tmp_path: Path) -> None:
    rows = [make(tmp_path, "b"), make(tmp_path, "a", "a dog", frames=3)]
    write_report(tmp_path, rows)
    assert (tmp_path / "report/index.html").read_text().count("<script") == 2, "the data and the script"
    assert len(links(tmp_path)) == 5
    for link in links(tmp_path):
        assert (tmp_path / "report" / unquote(link)).is_file(), link
    assert {video_id: card["text"] for video_id, card in page_cards(tmp_path).items()} == {"a": "a dog", "b": PROMPT}
    assert list(page_cards(tmp_path)) == ["a", "b"]


def test_previews_last_as_long_as_their_videos(tmp_path: Path) -> None:
    rows = [make(tmp_path, "short"), make(tmp_path, "long", frames=100, size=16)]
    write_report(tmp_path, rows)
    for row in rows:
        with Image.open(tmp_path / f"report/previews/{Path(row['file_name']).stem}.webp") as preview:
            seconds = 0.0
            stored = getattr(preview, "n_frames", 1)  # equal neighbours are stored as one
            for number in range(stored):
                preview.seek(number)
                preview.load()
                seconds += preview.info["duration"] / 1000
            assert preview.format == "WEBP"
            assert 3 < stored < 49
            assert abs(seconds - row["duration_s"]) < 0.05 * row["duration_s"]
            assert preview.info["loop"] == 0


def test_the_sheet_shows_the_input_and_evenly_spaced_frames(tmp_path: Path) -> None:
    write_report(tmp_path, [make(tmp_path, "a")])
    sheet = np.asarray(Image.open(tmp_path / "report/contact_sheet.png")).astype(int)
    left, side, step = CAPTION_WIDTH + 20, 128, 138
    numbers = evenly(20, 9)
    assert (len(numbers), numbers[0], numbers[-1]) == (9, 0, 19)
    for place, number in enumerate(numbers):
        cell = sheet[10 : 10 + side, left + place * step : left + place * step + side]
        assert abs(cell - (GREY + 4 * number)).max() <= 3
    assert (sheet[:, :left] < 100).any()


def test_small_frames_are_enlarged_pixel_by_pixel_and_large_ones_reduced() -> None:
    tiny = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    enlarged = np.asarray(thumbnail(tiny))
    assert enlarged.shape == (128, 128, 3)
    assert (enlarged[::2, ::2] == tiny).all()
    assert thumbnail(np.zeros((256, 512, 3), np.uint8)).size == (128, 64)
    assert thumbnail(np.zeros((96, 96, 3), np.uint8)).size == (96, 96)


def test_no_videos_and_videos_of_several_sizes(tmp_path: Path) -> None:
    write_report(tmp_path / "empty", [])
    assert "<title>Run report: 0 videos</title>" in (tmp_path / "empty/report/index.html").read_text()
    assert Image.open(tmp_path / "empty/report/contact_sheet.png").size[1] > 20
    small, large = (thumbnail(np.zeros((*size, 3), np.uint8)) for size in ((64, 64), (480, 854)))
    lines = [({"text": "x", "id": "a"}, {0: small}), ({"text": "\u0301", "id": "b"}, {0: large, 1: large})]
    with Image.open(io.BytesIO(contact_sheet(lines))) as sheet:
        assert sheet.width == CAPTION_WIDTH + 30 + 2 * 138


@pytest.mark.parametrize("text", ["a red circle", "o" * 500, "word " * 500, "日本" * 90, "café " * 9, "x" * 10**6])
def test_captions_fit(text: str) -> None:
    lines = _wrap(text, CAPTION_LINES)
    assert 1 <= len(lines) <= CAPTION_LINES
    assert all(_font().getlength(line) <= CAPTION_WIDTH for line in lines)
    shown = "".join(lines).removesuffix("...").replace(" ", "")
    assert text.replace(" ", "").replace("é", "e").startswith(shown)
    assert shown


def test_a_video_that_cannot_be_read_is_named_and_the_others_are_shown(tmp_path: Path) -> None:
    rows = [make(tmp_path, "a"), make(tmp_path, "b"), make(tmp_path, "c", "a dog")]
    (tmp_path / "dataset" / rows[0]["file_name"]).write_bytes(b"torn")
    (tmp_path / "dataset" / rows[1]["file_name"]).unlink()
    made = write_report(tmp_path, rows)
    assert (made.measured, made.unreadable) == (1, {"a", "b"})
    shown = {video_id: (card["status"], card.get("problem")) for video_id, card in page_cards(tmp_path).items()}
    lost = ("unreadable", "its mp4 cannot be read")
    assert shown == {"a": lost, "b": lost, "c": ("finished", None)}
    sheet = np.asarray(Image.open(tmp_path / "report/contact_sheet.png")).astype(int)
    assert abs(sheet[-100:-60, CAPTION_WIDTH + 30] - GREY).max() <= 3


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_only_what_has_changed_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report of the same videos touches no file and decodes none; a changed video costs its own preview."""
    rows = [make(tmp_path, "a"), make(tmp_path, "b"), make(tmp_path, "c")]
    write_report(tmp_path, rows)
    before = contents(tmp_path / "report")
    with monkeypatch.context() as patch:
        patch.setattr(report, "read_video", lambda url: pytest.fail(f"{url} was decoded"))
        write_report(tmp_path, rows[::-1])
        write_page(str(tmp_path), standing(rows))
    assert contents(tmp_path / "report") == before
    longer = make(tmp_path, "b", frames=24)
    write_report(tmp_path, [rows[0], longer, rows[2]])
    after = contents(tmp_path / "report")
    for folder in ("previews", "curves"):
        kept = [name for name in before if folder in name and after.get(name) == before[name]]
        assert [Path(name).stem[0] for name in sorted(kept)] == ["a", "c"]
    assert {Path(name).stem for name in after if "/b-" in name} == {Path(longer["file_name"]).stem}, "the old ones go"
    assert Path(longer["file_name"]).stem in page_cards(tmp_path)["b"]["file"]
    assert len(set(after) - set(before)) == 2
    (sheet,) = (name for name in after if name.endswith("contact_sheet.png"))
    assert after[sheet] != before[sheet]


def test_a_page_without_new_pictures_links_what_there_is(tmp_path: Path) -> None:
    old = make(tmp_path, "a")
    write_page(str(tmp_path), standing([old]))
    assert "poster" not in page_cards(tmp_path)["a"]
    assert "<img" not in (tmp_path / "report/index.html").read_text()
    assert "1 finished video has no preview or curves yet" in (tmp_path / "report/index.html").read_text()
    write_report(tmp_path, [old])
    write_page(str(tmp_path), standing([old, make(tmp_path, "b")]))
    assert [video_id for video_id, card in page_cards(tmp_path).items() if "points" not in card] == ["b"]
    for link in links(tmp_path):
        assert (tmp_path / "report" / unquote(link)).is_file(), link


def test_a_damaged_video_is_told_though_its_preview_is_there(tmp_path: Path) -> None:
    rows = [make(tmp_path, "a"), make(tmp_path, "b")]
    write_report(tmp_path, rows)
    path = tmp_path / "dataset" / rows[0]["file_name"]
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    write_report(tmp_path, rows)
    assert [video_id for video_id, card in page_cards(tmp_path).items() if "problem" in card] == ["a"]
    path.write_bytes(bytes(len(whole)))  # of the right length: only whoever decodes it can tell
    for preview in (tmp_path / "report/previews").glob("a-*"):
        preview.unlink()
    before: dict[str, tuple[int, bytes]] = {}
    for _ in range(2):
        write_report(tmp_path, rows)
        before = contents(tmp_path / "report")
        assert page_cards(tmp_path)["a"]["status"] == "unreadable"
    path.write_bytes(whole)
    write_report(tmp_path, rows)
    assert page_cards(tmp_path)["a"]["status"] == "finished"
    assert contents(tmp_path / "report") != before


def test_the_sheet_of_many_videos_keeps_a_readable_size_and_new_pictures_have_a_limit(tmp_path: Path) -> None:
    one = make(tmp_path, "v", frames=3, size=16)
    folder = (tmp_path / "dataset" / one["file_name"]).parent
    rows = []
    for number in range(60):
        name = f"v{number:03d}"
        file = folder / f"{name}-{one['frames_sha256'][:8]}.mp4"
        file.hardlink_to(tmp_path / "dataset" / one["file_name"])
        rows.append({**one, "id": name, "file_name": str(file.relative_to(tmp_path / "dataset"))})
    told = []
    assert write_report(tmp_path, rows, most_new=4, tell=lambda *counts: told.append(counts)).measured == 4 + 22
    with Image.open(tmp_path / "report/contact_sheet.png") as sheet:
        assert sheet.height < 24 * 160
    assert SHEET_VIDEOS == 24
    assert told[-1] == (26, 26), "and those of the sheet, of which two are among them"
    assert "34 finished videos have no preview or curves yet" in (tmp_path / "report/index.html").read_text()
    assert write_report(tmp_path, rows, most_new=4).measured == 30
    assert [video_id for video_id, card in page_cards(tmp_path).items() if "points" in card][:8] == [
        f"v{number:03d}" for number in range(8)
    ]


def test_previews_of_large_frames_are_reduced() -> None:
    frames = [np.full((480, 832, 3), 40 * n, np.uint8) for n in range(3)]
    with Image.open(io.BytesIO(report.animated_webp(frames, 100))) as preview:
        assert preview.size == (PREVIEW_SIDE, round(PREVIEW_SIDE * 480 / 832))


def test_curves_are_those_of_the_mp4_and_are_kept(tmp_path: Path) -> None:
    row = make(tmp_path, "a", frames=12)
    write_report(tmp_path, [row])
    (kept,) = (tmp_path / "report/curves").iterdir()
    drift = Drift.read(kept.read_bytes())
    assert drift
    for name, metric in METRICS.items():
        curve = metric.curve(read_video(str(tmp_path / "dataset" / row["file_name"])))
        assert drift.points[name] == pytest.approx(curve.tolist(), rel=1e-5)
        assert drift.figures[name] == pytest.approx(metric.figure_of(curve), rel=1e-5)
    card, metrics = page_cards(tmp_path)["a"], page_data(tmp_path)["metrics"]
    assert [metric["name"] for metric in metrics] == list(METRICS)
    place = list(METRICS).index("color")
    assert (card["points"][place][0], card["points"][place][-1]) == (0, 100)
    assert card["drift"][place] == pytest.approx(drift.figures["color"], rel=1e-3)
    kept.write_bytes(kept.read_bytes()[:-9])
    write_report(tmp_path, [row])
    assert Drift.read(kept.read_bytes()) == drift, "a damaged file is made again"


def test_where_there_is_a_new_metric_every_video_is_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = make(tmp_path, "a", frames=3)
    write_report(tmp_path, [row])
    monkeypatch.setitem(METRICS, "again", Metric(METRICS["color"].values, "again", "levels", "mean"))
    write_report(tmp_path, [row])
    assert len(page_cards(tmp_path)["a"]["points"]) == len(METRICS)


def test_a_drawn_curve_loses_no_fault_of_a_single_frame() -> None:
    assert points_of([3.0]) == [3]
    assert points_of(np.arange(20.0)) == list(range(20))
    for count in (33, 500, 501):
        curve = np.full(count, 5.0)
        curve[count // 2] = -2
        points = points_of(curve)
        assert len(points) == POINTS
        assert sorted(points)[:2] == [-2, 5]


SUMMARY = {
    "usage": {"device_seconds": 7384.2, "worker_losses": 2, "frames_discarded": 0},
    "this_life": {"percentiles_s": {"queue_wait": {"p50": 0.0123, "p99": 93.0}}, "frames_per_second": 1.25},
    "classes": [{"device": "cpu"}],
}


def test_a_page_of_a_run_that_goes_on(tmp_path: Path) -> None:
    failure = {"line": 7, "id": "bad", "prompt": "<b>", "error_type": "ImageError", "error_message": "&", "attempts": 2}
    going = [UnderWay(asked("half", label="x"), 4), UnderWay(asked("none"), 0), UnderWay(asked("grown", frames=40), 21)]
    stands = standing([make(tmp_path, "grown"), make(tmp_path, "done", label=[1])], [failure], going, SUMMARY)
    report.write_report(str(tmp_path), stands)
    shown = page_cards(tmp_path)
    assert {video_id: (card["status"], card["label"]) for video_id, card in shown.items()} == {
        "bad": ("failed", ""),
        "done": ("finished", "[1]"),
        "grown": ("in progress", ""),
        "half": ("in progress", "x"),
        "none": ("waiting", ""),
    }
    assert [(shown[name]["frame"], shown[name]["frames"]) for name in ("half", "none", "grown")] == [
        (5, 20), (0, 20), (22, 40)
    ]  # fmt: skip
    assert "poster" in shown["grown"], "what it was before stays to be seen"
    assert shown["bad"]["problem"] == "ImageError: &"
    html = (tmp_path / "report/index.html").read_text()
    error = "<td><b><bdi>ImageError</bdi></b> <bdi>&amp;</bdi></td>"
    assert f'data-name="line">7</td><th scope="row"><bdi>bad</bdi></th>{error}' in html
    assert 'data-name="attempts">2</td><td><bdi>&lt;b&gt;</bdi></td>' in html
    for text in (">12.3 ms<", ">93 s<", ">2.1 h<", "Made on cpu.", "<dt>workers lost</dt><dd>2</dd>"):
        assert text in html, text
    assert "frames made twice" not in html


def test_the_worst_joins_are_told_in_words(tmp_path: Path) -> None:
    like = {"color": 1.2, "sharpness": 0.3, "motion": 0.9}
    joins = [{"frame": 4, **like}, {"frame": 8, **like, "color": 2.51}, {"frame": 16, **like, "color": 6.2}]
    joins[1] |= {"motion": 0.0412}
    joins[2] |= {"sharpness": 12.0}
    rows = [make(tmp_path, name, "a dog", frames=3) for name in ("alike", "mine", "single", "told")]
    write_report(tmp_path, rows)
    assert "joins the next" not in (tmp_path / "report/index.html").read_text()
    rows[0] |= {"sampler": "clip", "fps": 8.0, "seams": json.dumps([{"frame": 4, **like}] * 2)}
    rows[1] |= {"seams": "a manifest's own column, of a version that took it"}
    rows[2] |= {"sampler": "clip", "seams": None}
    rows[3] |= {"sampler": "clip", "fps": 8.0, "seams": json.dumps(joins)}
    write_report(tmp_path, rows)
    assert "joins the next" in (tmp_path / "report/index.html").read_text()
    assert {name: card.get("seams") for name, card in page_cards(tmp_path).items()} == {
        "alike": ["no join of clips stands out, of 2"],
        "mine": None,
        "single": None,
        "told": [
            "where a clip joins at 2.0 s (frame 16), the colour jumps: 6.2 times the usual change",
            "where a clip joins at 2.0 s (frame 16), the sharpness jumps: 12 times the usual change",
            "where a clip joins at 1.0 s (frame 8), the picture halts: 0.041 times the usual motion",
        ],
    }


def test_a_report_on_s3(moto_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [make(moto_url, "a", frames=3), make(moto_url, "b", frames=3)]
    assert write_report(moto_url, rows).measured == 2
    monkeypatch.setattr(report, "read_video", lambda url: pytest.fail(f"{url} was decoded"))
    assert write_report(moto_url, rows).measured == 2
    fs, root = open_filesystem(moto_url)
    page = fs.cat_file(f"{root}/report/index.html")
    write_page(moto_url, standing(rows))
    assert fs.cat_file(f"{root}/report/index.html") == page
    assert page.count(b'"poster"') == page.count(b'"points"') == 2


def test_equal_runs_have_equal_pages(tmp_path: Path) -> None:
    pages = []
    for name, order in (("one", 1), ("two", -1)):
        rows = [make(tmp_path / name, "b", label="x"), make(tmp_path / name, "a", frames=3)]
        report.write_report(str(tmp_path / name), standing(rows[::order], summary=SUMMARY))
        pages.append((tmp_path / name / "report/index.html").read_bytes())
    assert pages[0] == pages[1]


def test_pictures_of_a_video_that_another_writer_has_just_seen_finished_stay(tmp_path: Path) -> None:
    rows = [make(tmp_path, "a", frames=3), make(tmp_path, "b", frames=3)]
    write_report(tmp_path, rows)
    report.write_report(str(tmp_path), standing(rows[:1], under_way=[UnderWay(asked("b"), 2)]))
    assert len(list((tmp_path / "report/previews").iterdir())) == 2
    write_report(tmp_path, rows[:1])
    assert len(list((tmp_path / "report/previews").iterdir())) == 1, "b is no video of the run any more"
    assert len(list((tmp_path / "report/curves").iterdir())) == 1


def test_a_page_of_more_videos_than_it_lists_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(page, "LISTED", 3)
    monkeypatch.setattr(page, "FAILURES_LISTED", 1)
    going = [UnderWay(asked(f"a{number}"), number) for number in range(3)]
    wrong = {"prompt": "\ud800 " + "x" * 10**6, "error_type": "E", "error_message": "e", "attempts": 0}
    failures = [{"line": number, "id": f"f{number}", **wrong} for number in range(2)]
    write_page(str(tmp_path), standing([], failures, going))
    html = (tmp_path / "report/index.html").read_text()
    assert list(page_cards(tmp_path)) == ["a1", "a2", "f0"], "those that wait come last"
    assert "The page lists 3 of 5 videos, those that wait last" in html
    assert "The first 1 of 2; all are in failures.parquet." in html
    assert len(html) < 40_000
    assert json.loads(json.dumps(page_cards(tmp_path)["f0"]["text"])).endswith("xx…")
