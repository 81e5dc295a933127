"""Buckets of an S3 server that runs for the tests."""

import uuid

import pytest

from tests.support.ceph import KEYS
from ti2v_dist.storage.objects import Store


def bucket_in(endpoint: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": endpoint}.items():
            patch.setenv(name, value)
        Store("s3://runs/x").fs.call_s3("create_bucket", Bucket="runs")


def url_in(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": endpoint}.items():
        monkeypatch.setenv(name, value)
    return f"s3://runs/{uuid.uuid4().hex}"
