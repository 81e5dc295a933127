"""URLs: which may be read, what they name, and what is made of servers that are away, busy or silent."""

import os

import pytest

from ti2v_dist.images import check_image
from ti2v_dist.urls import UrlRefused, absolute_url, check_url, resolve_url


def test_urls_are_taken_from_the_manifests_folder():
    assert resolve_url("img/a.png", "s3://b/dir") == "s3://b/dir/img/a.png"
    assert resolve_url("../a.png", "s3://b/dir") == "s3://b/a.png"
    assert resolve_url("../a.png", "/x/y") == "/x/a.png"
    assert resolve_url("/z/a.png", "s3://b/dir") == "/z/a.png"
    assert resolve_url("file:///z/a.png", "/x") == "/z/a.png"
    assert absolute_url("a.png") == os.path.join(os.getcwd(), "a.png")


def test_http_is_for_those_who_ask():
    with pytest.raises(UrlRefused, match="only when it is explicitly allowed"):
        check_url("https://x/a.png")
    assert check_url("https://x/a.png", allow_http=True) == "https://x/a.png"
    with pytest.raises(UrlRefused, match="https"):
        check_url("ftp://x/a.png", allow_http=True)


def test_a_store_that_does_not_answer_is_no_fault_of_the_image(monkeypatch):
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with pytest.raises(ConnectionError, match=r"'s3://bucket/a.png' cannot be read"):
        check_image("s3://bucket/a.png")
