"""URLs: which may be read, what they name, and what is made of servers that are away, busy or silent."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.support.cli_runs import TI2V, environment
from tests.support.drawn import encoded, pixels
from tests.support.manifests import read_manifest
from tests.support.web import Web, refusing_url, serving, wait_for
from ti2v_dist.config import load_config
from ti2v_dist.errors import InputError
from ti2v_dist.inputs.defaults import RequestDefaults
from ti2v_dist.inputs.images import check_image
from ti2v_dist.inputs.inspection import check_images
from ti2v_dist.storage import objects, urls
from ti2v_dist.storage.addresses import UrlRefused, absolute_url, check_url, confined, resolve_url
from ti2v_dist.storage.urls import HostUnreachable, Unreachable, read_bytes


def test_urls_are_taken_from_the_manifests_folder() -> None:
    assert resolve_url("img/a.png", "s3://b/dir") == "s3://b/dir/img/a.png"
    assert resolve_url("../a.png", "s3://b/dir") == "s3://b/a.png"
    assert resolve_url("../a.png", "/x/y") == "/x/a.png"
    assert resolve_url("/z/a.png", "s3://b/dir") == "/z/a.png"
    assert resolve_url("file:///z/a.png", "/x") == "/z/a.png"
    assert absolute_url("a.png") == os.path.join(os.getcwd(), "a.png")


def test_http_is_for_those_who_ask() -> None:
    with pytest.raises(UrlRefused, match="only when it is explicitly allowed"):
        check_url("https://x/a.png")
    assert check_url("https://x/a.png", allow_http=True) == "https://x/a.png"
    with pytest.raises(UrlRefused, match="https"):
        check_url("ftp://x/a.png", allow_http=True)


def test_a_store_that_does_not_answer_is_no_fault_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with pytest.raises(ConnectionError, match=r"'s3://bucket/a.png' cannot be read"):
        check_image("s3://bucket/a.png")


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with serving() as found:
        yield found


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tries, with less waiting between them."""
    monkeypatch.setattr(objects, "RETRY_BASE_S", 0.001)
    monkeypatch.setattr(urls, "SILENCE_S", 0.2)


# What a URL names


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_a_file_url_is_the_path_that_it_was_made_of(name: str) -> None:
    if name in (".", ".."):
        return
    path = Path("/some where", name)
    for url in (path.as_uri(), path.as_uri().replace("file:///", "file://localhost/")):
        assert resolve_url(url, "/x") == absolute_url(url) == str(path)
    assert resolve_url(str(path), "/x") == str(path)  # a plain path is what it says, %20 or not


@pytest.mark.parametrize("name", ["sp ace.png", "per%20cent.png", "a::b.png", "q?#.png", "nö.png", "100%.png"])
def test_odd_file_names_are_read_by_path_and_by_url(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"bytes")
    assert read_bytes(str(path)) == read_bytes(path.as_uri()) == b"bytes"


@pytest.mark.parametrize("url", ["file://elsewhere/a.png", "file://a.png", "file:///%ff.png"])
def test_a_file_url_of_another_machine_is_refused(url: str) -> None:
    with pytest.raises(UrlRefused, match=re.escape(repr(url))):
        resolve_url(url, "/x")


def test_a_slash_at_the_end_of_an_output_is_nothing() -> None:
    for url in ("s3://bucket/run", "s3://bucket/run/", "s3://bucket/run///"):
        assert absolute_url(url) == "s3://bucket/run"
        assert load_config(None).run_id(absolute_url(url)) == load_config(None).run_id("s3://bucket/run")
    assert absolute_url("file:///x/run/") == absolute_url("/x/run/") == "/x/run"
    assert absolute_url("https://host/picture/") == "https://host/picture/"


# Where images may be


@pytest.mark.parametrize(
    ("url", "place", "is_below"),
    [
        ("s3://bucket/data/a.png", "s3://bucket/data", True),
        ("s3://bucket/data/a.png", "s3://bucket/data/", True),
        ("s3://bucket/data2/a.png", "s3://bucket/data", False),
        ("s3://bucket2/data/a.png", "s3://bucket", False),
        ("gs://bucket/data/a.png", "s3://bucket", False),
        ("s3://bucket/data/../a.png", "s3://bucket/data", False),
        ("https://host/data/a.png?size=1", "https://HOST:443/data", True),
        ("http://host/data/a.png", "https://host/data", False),
        ("https://host:8443/data/a.png", "https://host/data", False),
        ("https://host@evil/data/a.png", "https://host/data", False),
        ("https://host.evil/data/a.png", "https://host", False),
        ("https://host/data/%2e%2e/a.png", "https://host/data", False),
        ("https://host/data/..%2fa.png", "https://host/data", False),
        ("https://host/data/%252e%252e/a.png", "https://host/data", False),
        ("https://host:x/data/a.png", "https://host/data", False),
        ("/etc/passwd", "https://host/", False),
    ],
)
def test_only_what_is_below_a_place_is_read(url: str, place: str, is_below: bool) -> None:
    if is_below:
        assert confined(url, ("/elsewhere", place)) == url
    else:
        with pytest.raises(UrlRefused, match="is not below '/elsewhere' or "):
            confined(url, ("/elsewhere", place))


def test_no_link_and_no_step_back_leads_out_of_a_folder(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "in2"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.png").write_bytes(folder.name.encode())
    (inside / "out").symlink_to(outside)
    (inside / "out.png").symlink_to(outside / "a.png")
    (inside / "same.png").symlink_to(inside / "a.png")
    (tmp_path / "link").symlink_to(inside)
    for place in (str(inside), f"{inside}/", inside.as_uri(), str(tmp_path / "link")):
        assert read_bytes(str(inside / "a.png"), below=(place,)) == b"in"
        assert read_bytes(str(inside / "same.png"), below=(place,)) == b"in"
        assert read_bytes(str(tmp_path / "link" / "a.png"), below=(place,)) == b"in"
        for name in ("out/a.png", "out.png", "../in2/a.png"):
            for url in (f"{inside}/{name}", f"file://{inside}/{name}"):
                with pytest.raises(UrlRefused, match="is not below"):
                    read_bytes(url, below=(place,))


def test_a_redirect_leads_nowhere_that_the_url_may_not(web: Web, quick: None) -> None:
    web.files["in/a.png"] = web.files["out/a.png"] = b"bytes"
    web.status("in/near.png", 302, Location="/in/a.png")
    web.status("in/far.png", 302, Location="/out/a.png")
    web.status("in/file.png", 302, Location="file:///etc/passwd")
    web.status("in/round.png", 302, Location="/in/round.png")
    below = (f"{web.url}/in",)
    assert read_bytes(f"{web.url}/in/near.png", allow_http=True, below=below) == b"bytes"
    assert read_bytes(f"{web.url}/in/far.png", allow_http=True) == b"bytes"
    with pytest.raises(UrlRefused, match=r"out/a.png' is not below"):
        read_bytes(f"{web.url}/in/far.png", allow_http=True, below=below)
    with pytest.raises(UrlRefused, match="no web address"):
        read_bytes(f"{web.url}/in/file.png", allow_http=True)
    with pytest.raises(OSError, match="more than 5 redirects"):
        read_bytes(f"{web.url}/in/round.png", allow_http=True)


# Servers


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503])
def test_a_busy_web_server_is_asked_again(web: Web, quick: None, code: int) -> None:
    web.status(f"busy{code}", code, code, then=b"bytes", Retry_After="0")
    assert read_bytes(f"{web.url}/busy{code}", allow_http=True) == b"bytes"
    assert web.asked[f"busy{code}"] == 3


@pytest.mark.parametrize(
    ("code", "kind", "said", "tries"),
    [
        (404, FileNotFoundError, "does not exist", 1),
        (410, FileNotFoundError, "does not exist", 1),
        (401, PermissionError, "is not permitted: the server answers 401", 1),
        (403, PermissionError, "is not permitted: the server answers 403", 1),
        (400, OSError, "the server answers 400", 1),
        (429, HostUnreachable, "no answer in 6 tries from http://127.0.0.1:.*: the server answers 429", 6),
        (503, HostUnreachable, "the server answers 503", 6),
    ],
)
def test_what_a_web_server_says_is_told(
    web: Web, quick: None, code: int, kind: type[Exception], said: str, tries: int
) -> None:
    web.status(f"says{code}", code)
    with pytest.raises(kind, match=said) as caught:
        read_bytes(f"{web.url}/says{code}", allow_http=True)
    assert f"{web.url}/says{code}" in str(caught.value)
    assert (type(caught.value), web.asked[f"says{code}"]) == (kind, tries)


def test_a_server_that_is_away_silent_or_cuts_its_answers_is_named(web: Web, quick: None) -> None:
    web.hang("silent")
    web.cut("cut", b"x" * 1000)
    cases = {
        f"{refusing_url()}/a": "Connect call failed",
        "http://no-such-host.invalid/a": "there is no such host",
        f"{web.url}/silent": "it sent nothing for",
        f"{web.url}/cut": "its answer was cut short",
    }
    for url, said in cases.items():
        with pytest.raises(HostUnreachable, match=said) as caught:
            read_bytes(url, allow_http=True)
        assert repr(url) in str(caught.value)
    assert (web.asked["silent"], web.asked["cut"]) == (6, 6)


def test_a_drip_has_an_end(web: Web, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "READ_S", 0.6)

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        while not web.closing.wait(0.1):
            handler.wfile.write(b"x")
            handler.wfile.flush()

    web.answers["drip"] = drip
    with pytest.raises(HostUnreachable, match=r"not whole after 1 s"):
        read_bytes(f"{web.url}/drip", allow_http=True)
    assert web.asked["drip"] == 1


def test_no_more_is_read_than_is_allowed(web: Web) -> None:
    web.files["large"] = b"x" * 100_000
    with pytest.raises(InputError, match="more than the allowed 1,000 bytes"):
        read_bytes(f"{web.url}/large", 1000, allow_http=True)
    assert read_bytes(f"{web.url}/large", 100_000, allow_http=True) == web.files["large"]


@pytest.fixture
def s3(web: Web, monkeypatch: pytest.MonkeyPatch, quick: None) -> Web:
    """The web server as an S3 endpoint."""
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
    s3fs.S3FileSystem.clear_instance_cache()  # a client keeps the credentials of its first request
    monkeypatch.setenv("AWS_ENDPOINT_URL", web.url)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    return web


def s3_says(web: Web, name: str, code: int, word: str, times: int = 1000, then: bytes = b"") -> None:
    body = f"<Error><Code>{word}</Code><Message>the words of {word}</Message></Error>".encode()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        is_error = web.asked[name] <= times
        handler.send_response(code if is_error else 200)
        handler.send_header("Content-Length", str(len(body if is_error else then)))
        handler.end_headers()
        handler.wfile.write(body if is_error else then)

    web.answers[name] = answer


def test_s3_that_is_busy_is_asked_again(s3: Web) -> None:
    s3_says(s3, "bucket/busy.png", 503, "SlowDown", times=3, then=b"bytes")
    assert read_bytes("s3://bucket/busy.png", 1000) == b"bytes"
    s3_says(s3, "bucket/always.png", 503, "SlowDown")
    with pytest.raises(Unreachable, match=r"no answer in 6 tries from s3://bucket: .*the words of SlowDown"):
        read_bytes("s3://bucket/always.png")
    assert s3.asked["bucket/always.png"] == 6
    s3.cut("bucket/cut.png", b"x" * 1000)
    with pytest.raises(Unreachable, match=r"s3://bucket/cut.png.* in 6 tries .*not completed"):
        read_bytes("s3://bucket/cut.png")


@pytest.mark.parametrize(
    ("code", "word"),
    [(400, "ExpiredToken"), (403, "InvalidAccessKeyId"), (403, "SignatureDoesNotMatch"), (400, "InvalidToken")],
)
def test_credentials_that_s3_refuses_are_told_in_its_words(s3: Web, code: int, word: str) -> None:
    s3_says(s3, f"bucket/{word}.png", code, word)
    for limit in (None, 1000):
        with pytest.raises(objects.StoreDenied, match=f"the words of {word}"):
            read_bytes(f"s3://bucket/{word}.png", limit)


def test_one_object_of_s3_may_be_missing_or_barred(s3: Web) -> None:
    s3_says(s3, "bucket/none.png", 404, "NoSuchKey")
    s3_says(s3, "bucket/barred.png", 403, "AccessDenied")
    with pytest.raises(FileNotFoundError, match=r"'s3://bucket/none.png' does not exist"):
        read_bytes("s3://bucket/none.png")
    with pytest.raises(PermissionError, match=r"'s3://bucket/barred.png' is not permitted: the words of AccessDenied"):
        read_bytes("s3://bucket/barred.png")


def test_no_credentials_at_all_end_the_command(s3: Web, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(objects.StoreDenied, match="redentials"):
        read_bytes("s3://bucket/a.png")


def test_an_empty_object_is_empty(moto_url: str) -> None:
    objects.Store(moto_url).fs.pipe_file(f"{moto_url}/empty", b"")
    assert read_bytes(f"{moto_url}/empty") == read_bytes(f"{moto_url}/empty", 1000) == b""


# A manifest's images


def test_a_server_that_is_away_is_not_asked_for_every_image(web: Web, quick: None) -> None:
    dead = refusing_url()
    web.files["ok.png"] = encoded(Image.fromarray(pixels(8, 8)), "PNG")
    asked = [f"{dead}/{number}.png" for number in range(40)]
    found = check_images([*asked, f"{web.url}/ok.png"], True)
    assert found.keys() == set(asked)
    assert all(dead in str(error) for error in found.values())
    assert sum("was not asked for" in str(error) for error in found.values()) >= 20


def test_a_store_that_is_away_is_no_rows_fault(s3: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", refusing_url())
    with pytest.raises(Unreachable, match="no answer"):
        check_images([f"s3://away/{number}.png" for number in range(40)])


def test_one_object_that_a_store_never_gives_whole_is_its_rows_fault(s3: Web) -> None:
    data = encoded(Image.fromarray(pixels(8, 8)), "PNG")
    s3.files["shop/ok.png"] = data
    s3.cut("shop/cut.png", data)
    (url,) = check_images(["s3://shop/ok.png", "s3://shop/cut.png"])
    assert url == "s3://shop/cut.png"


def test_a_manifest_is_read_as_images_are(web: Web, quick: None) -> None:
    defaults = RequestDefaults(8, 8, {"height": 64, "width": 64, "context_frames": 7}, allow_http=True)
    web.status("barred.jsonl", 403)
    for name, said in {
        "none.jsonl": "does not exist",
        "barred.jsonl": "is not permitted: the server answers 403",
    }.items():
        (problem,) = read_manifest(f"{web.url}/{name}", defaults).problems
        assert (problem.line, said in problem.message) == (0, True)
    web.status("busy.jsonl", 503)
    with pytest.raises(HostUnreachable, match=r"busy.jsonl' cannot be read: no answer in 6 tries"):
        read_manifest(f"{web.url}/busy.jsonl", defaults)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("what", ["image", "manifest"])
def test_validate_ends_at_once_when_it_is_told_to(web: Web, tmp_path: Path, number: int, what: str) -> None:
    """With a server that accepts and never answers."""
    name = f"never-{what}-{number}.jsonl"
    web.hang(name)
    manifest = tmp_path / "m.jsonl"
    rows = [{"id": str(i), "image": f"{web.url}/{name}?{i}", "prompt": "x"} for i in range(20)]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = str(manifest) if what == "image" else f"{web.url}/{name}"
    command = [TI2V, "validate", asked, "--set", "allow_http=true"]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: web.asked[name] > 0, 120)
        began = time.monotonic()
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert time.monotonic() - began < 5
    assert process.returncode == 128 + number
    assert "Traceback" not in said
