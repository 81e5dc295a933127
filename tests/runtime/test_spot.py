"""Spot notices as the clouds' metadata services give them."""

import threading
from collections.abc import Iterator

import pytest

from tests.support.metadata_service import MetadataService
from tests.support.ray_runs import free_ports, wait_until
from ti2v_dist.runtime import spot
from ti2v_dist.runtime.spot import CLOUDS, GCE_NOTICE_S, Notice, first_notice, watch


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[MetadataService]:
    service = MetadataService()
    for name, value in service.environment.items():
        monkeypatch.setenv(name, value)
    for pause in ("AWS_POLL_S", "RETRY_S"):
        monkeypatch.setattr(spot, pause, 0.01)
    yield service
    service.close()


class Watching:
    """`first_notice` on a thread of its own."""

    def __init__(self, cloud: str) -> None:
        self.notice: Notice | None = None
        self._thread = threading.Thread(target=self._watch, args=(cloud,))
        self._thread.start()

    def _watch(self, cloud: str) -> None:
        self.notice = first_notice(cloud)

    def end(self) -> Notice:
        self._thread.join(30)
        assert self.notice
        return self.notice


def test_a_notice_of_aws_says_how_long_there_is(service: MetadataService) -> None:
    watching = Watching("aws")
    wait_until(lambda: len(service.requests) > 5, "requests")
    assert watching.notice is None
    service.take_away(120)
    notice = watching.end()
    assert notice.message.startswith("AWS: terminate at ")
    assert 100 < notice.remaining_s <= 120
    assert service.requests.count("PUT /latest/api/token") == 1


def test_a_token_of_aws_that_ran_out_is_renewed(service: MetadataService) -> None:
    watching = Watching("aws")
    wait_until(lambda: len(service.requests) > 3, "requests")
    service.tokens.clear()
    wait_until(lambda: service.tokens, "new token")
    service.take_away(-5)
    assert watching.end().remaining_s == 0
    assert service.requests.count("PUT /latest/api/token") == 2


def test_a_notice_of_gce_comes_while_it_is_waited_for(service: MetadataService) -> None:
    watching = Watching("gce")
    wait_until(lambda: len(service.requests) == 2, "request that waits")
    assert watching.notice is None
    service.take_away(30)
    assert watching.end() == Notice("GCE: preempted", GCE_NOTICE_S)
    assert len(service.requests) == 2, "it waits for a change, and does not poll"


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_notice_that_was_given_before_is_found(service: MetadataService, cloud: str) -> None:
    service.take_away(30)
    assert first_notice(cloud).remaining_s > 0


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_service_that_is_unwell_for_a_while_is_asked_again(service: MetadataService, cloud: str) -> None:
    watching = Watching(cloud)
    answered = {"aws": 3, "gce": 1}[cloud]  # AWS refuses a first request and gives a token
    wait_until(lambda: len(service.requests) > answered, "request after the first answer")
    service.unwell = 3
    service.take_away(30)
    assert watching.end().remaining_s > 0
    assert service.unwell == 0


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_machine_of_another_kind_is_told_so(monkeypatch: pytest.MonkeyPatch, cloud: str) -> None:
    nobody = f"127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://{nobody}")
    monkeypatch.setenv("GCE_METADATA_HOST", nobody)
    with pytest.raises(RuntimeError, match=f"no metadata service of {cloud} answers"):
        first_notice(cloud)


def test_an_unknown_cloud_is_named() -> None:
    with pytest.raises(ValueError, match="cloud is 'azure'; choose one of aws, gce"):
        watch("azure", "127.0.0.1:1")
