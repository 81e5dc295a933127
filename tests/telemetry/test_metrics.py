"""The endpoint, and the dashboard and alert rules over it."""

import asyncio
import json
import re
import socket
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.places import ROOT
from ti2v_dist.evaluation.seams import Change
from ti2v_dist.scheduling.losses import LOSSES
from ti2v_dist.telemetry import metrics as metrics_module
from ti2v_dist.telemetry.metrics import BUCKETS_S, LOSS_REASONS, MEASURES, OUTCOMES, PHASES, Endpoint, Metrics

LABELS = {"phase", "measure", "outcome", "error_type", "reason", "le"}
KNOWN_VALUES = {"phase": set(PHASES), "measure": set(MEASURES), "outcome": set(OUTCOMES), "reason": set(LOSS_REASONS)}
TARGET_LABELS = {"job", "instance"}  # Prometheus adds these to whatever it scrapes
WORDS = {"sum", "rate", "increase", "histogram_quantile", "by", "and", "or", "unless", "max", "min"}


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def url(metrics: Metrics) -> Iterator[str]:
    url, stop = metrics.serve()
    yield url
    stop()


def scrape(url: str) -> dict[tuple[str, frozenset], float]:
    with urllib.request.urlopen(url, timeout=5) as reply:
        families = list(text_string_to_metric_families(reply.read().decode()))
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def expressions() -> list[tuple[str, str]]:
    """(file, expression), every one of the dashboard and of the rules."""
    dashboard = json.loads((ROOT / "dashboards" / "ti2v.json").read_text())
    rules = yaml.safe_load((ROOT / "dashboards" / "rules.yaml").read_text())
    panels = [("ti2v.json", target["expr"]) for panel in dashboard["panels"] for target in panel["targets"]]
    return panels + [("rules.yaml", rule["expr"]) for group in rules["groups"] for rule in group["rules"]]


def metric_names(expression: str) -> set[str]:
    """The metric names of a PromQL expression: every word that is no function, label, number or duration."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\bby\s*\([^)]*\)", " ", bare)
    return set(re.findall(r"\b[a-zA-Z_:][a-zA-Z0-9_:]*", bare)) - WORDS


def matchers(expression: str) -> list[tuple[str, str, str]]:
    """(label, operator, value) of every matcher in braces."""
    braces = " ".join(re.findall(r"\{([^}]*)\}", expression))
    return re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', braces)


def test_scrape_holds_what_was_counted(metrics: Metrics, url: str) -> None:
    metrics.frames.inc(6)
    metrics.count_video("finished")
    metrics.count_failure("NonFiniteLatents")
    metrics.count_worker_loss("preempted")
    metrics.observe("denoise", 0.25, frames=6)
    metrics.in_flight.set(3)
    found = scrape(url)
    assert found["ti2v_frames_total", frozenset()] == 6
    assert found["ti2v_videos_total", frozenset({("outcome", "finished")})] == 1
    assert found["ti2v_failures_total", frozenset({("error_type", "NonFiniteLatents")})] == 1
    assert found["ti2v_worker_losses_total", frozenset({("reason", "preempted")})] == 1
    assert found["ti2v_frame_seconds_count", frozenset({("phase", "denoise")})] == 6
    assert found["ti2v_frame_seconds_sum", frozenset({("phase", "denoise")})] == pytest.approx(1.5)
    assert found["ti2v_frame_seconds_bucket", frozenset({("phase", "denoise"), ("le", "0.2")})] == 0
    assert found["ti2v_frame_seconds_bucket", frozenset({("phase", "denoise"), ("le", "0.3")})] == 6
    assert found["ti2v_videos_in_flight", frozenset()] == 3


def test_known_labels_stand_at_zero(url: str) -> None:
    found = scrape(url)
    for name, label, values in (
        ("ti2v_frame_seconds_count", "phase", PHASES),
        ("ti2v_seam_ratio_count", "measure", MEASURES),
        ("ti2v_videos_total", "outcome", OUTCOMES),
        ("ti2v_worker_losses_total", "reason", LOSS_REASONS),
    ):
        assert [found[name, frozenset({(label, value)})] for value in values] == [0] * len(values)


def test_each_join_of_a_video_is_counted_once_by_each_measure(metrics: Metrics, url: str) -> None:
    assert Change._fields == MEASURES
    metrics.observe_seams([])
    metrics.observe_seams([{"frame": 9, "color": 6.5, "sharpness": 1.0, "motion": 0.004} for _ in range(3)])
    found = scrape(url)
    for measure, low, high in (("color", "5.0", "10.0"), ("sharpness", "0.75", "1.0"), ("motion", "0", "0.1")):
        of = {
            (name, dict(labels).get("le")): n for (name, labels), n in found.items() if ("measure", measure) in labels
        }
        assert of["ti2v_seam_ratio_count", None] == 3
        assert (of.get(("ti2v_seam_ratio_bucket", low), 0), of["ti2v_seam_ratio_bucket", high]) == (0, 3)


def test_labels_are_the_bounded_ones(metrics: Metrics, url: str) -> None:
    metrics.count_failure("ValueError")
    assert {label for _, labels in scrape(url) for label, _ in labels} == LABELS


def test_buckets_run_from_a_millisecond_to_two_minutes() -> None:
    assert (BUCKETS_S[0], BUCKETS_S[-1]) == (0.001, 120)
    assert list(BUCKETS_S) == sorted(set(BUCKETS_S))


def test_an_unknown_label_value_is_our_bug(metrics: Metrics) -> None:
    with pytest.raises(AssertionError, match="dnoise"):
        metrics.observe("dnoise", 1.0)
    with pytest.raises(AssertionError, match="done"):
        metrics.count_video("done")
    with pytest.raises(AssertionError, match="gone"):
        metrics.count_worker_loss("gone")


@pytest.mark.parametrize("message", ["a red ball: s3://bucket/key", "E" * 65, "", "Ошибка", "Error\n"])
def test_a_message_never_becomes_a_label(metrics: Metrics, url: str, message: str) -> None:
    metrics.count_failure(message)
    found = {labels: value for (name, labels), value in scrape(url).items() if name == "ti2v_failures_total"}
    assert found == {frozenset({("error_type", "other")}): 1}


def test_snapshot_equals_the_scrape(metrics: Metrics, url: str) -> None:
    metrics.frames.inc(2)
    metrics.observe("commit", 0.004)
    metrics.count_failure("CorruptRecord")
    snapshot = metrics.snapshot()
    assert snapshot["ti2v_frames_total"] == 2
    assert snapshot['ti2v_failures_total{error_type="CorruptRecord"}'] == 1
    assert snapshot['ti2v_frame_seconds_count{phase="commit"}'] == 1
    assert json.loads(json.dumps(snapshot)) == snapshot
    left_out = ("_bucket", "_created")
    assert sorted(snapshot.values()) == sorted(v for (n, _), v in scrape(url).items() if not n.endswith(left_out))


def test_two_coordinators_of_one_process_share_nothing(metrics: Metrics, url: str) -> None:
    other = Metrics()
    other.frames.inc()
    assert scrape(url)["ti2v_frames_total", frozenset()] == 0


def test_endpoint_is_on_loopback_and_ends(metrics: Metrics) -> None:
    url, stop = metrics.serve()
    assert url.startswith("http://127.0.0.1:")
    port = int(url.split(":")[2].split("/")[0])
    with pytest.raises(OSError, match="in use"):
        metrics.serve(port)
    stop()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url, timeout=5)
    again, stop_again = metrics.serve(port)
    stop_again()
    assert again == url


def test_a_port_that_is_taken_is_served_once_it_is_free(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "ENDPOINT_RETRY_S", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        endpoint = Endpoint(metrics, port, "127.0.0.1")
        assert endpoint.url is None
        assert endpoint.problem == f"metrics are not served at 127.0.0.1:{port} yet: Address already in use"
        with pytest.raises(TimeoutError):
            asyncio.run(asyncio.wait_for(endpoint.keep_trying(), 0.1))
    asyncio.run(asyncio.wait_for(endpoint.keep_trying(), 60))
    url = f"http://127.0.0.1:{port}/metrics"
    assert (endpoint.url, endpoint.problem) == (url, None)
    assert scrape(url)
    endpoint.close()
    with pytest.raises(OSError, match="refused"):
        scrape(url)


def test_percentiles_are_interpolated_within_their_bucket(metrics: Metrics) -> None:
    assert metrics.percentiles() == {}
    for _ in range(90):
        metrics.observe("denoise", 0.25)
    for seconds in (4.0,) * 8 + (1000.0,) * 2:
        metrics.observe("denoise", seconds)
    assert metrics.percentiles() == {"denoise": {"p50": 0.2556, "p95": 4.25, "p99": 120.0}}


def test_every_expression_names_metrics_that_exist(metrics: Metrics, url: str) -> None:
    metrics.count_failure("ValueError")
    metrics.count_storage_retry("TimeoutError")
    exposed = {name for name, _ in scrape(url)}
    for file, expression in expressions():
        names = metric_names(expression)
        assert names, f"{file}: {expression} names no metric"
        assert names <= exposed, f"{file}: {expression} names {sorted(names - exposed)}"


def test_every_matcher_can_match() -> None:
    for file, expression in expressions():
        for label, operator, value in matchers(expression):
            assert label in LABELS | TARGET_LABELS, f"{file}: no label {label}"
            if label in KNOWN_VALUES and operator in ("=", "=~", "!="):
                assert set(value.split("|")) <= KNOWN_VALUES[label], f"{file}: {label} is never {value!r}"


def test_the_dashboard_shows_every_metric(metrics: Metrics) -> None:
    shown = set().union(*(metric_names(expression) for file, expression in expressions() if file == "ti2v.json"))
    metrics.count_failure("ValueError")
    metrics.count_storage_retry("TimeoutError")
    families = {family.name: {sample.name for sample in family.samples} for family in metrics.registry.collect()}
    assert len(families) == 13
    assert not [name for name, samples in families.items() if not samples & shown]


def test_the_dashboard_is_importable() -> None:
    dashboard: dict[str, Any] = json.loads((ROOT / "dashboards" / "ti2v.json").read_text())
    assert dashboard["schemaVersion"] >= 39
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["datasource"]["uid"] == "${datasource}"
        used = set(re.findall(r"\$(\w+)", json.dumps(panel["targets"]))) - {"__rate_interval"}
        assert used <= variables
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24


def test_the_dashboard_has_the_percentiles_of_every_phase() -> None:
    shown = [expression for file, expression in expressions() if file == "ti2v.json"]
    for phase in PHASES:
        for quantile in ("0.5", "0.95", "0.99"):
            assert any(e.startswith(f"histogram_quantile({quantile},") and f'phase="{phase}"' in e for e in shown)


def test_each_reason_of_a_loss_alarms_under_its_own_name() -> None:
    rules = yaml.safe_load((ROOT / "dashboards" / "rules.yaml").read_text())["groups"][0]["rules"]
    counted = {}
    for rule in rules:
        for label, operator, value in matchers(rule["expr"]):
            if label == "reason":
                matched = {reason for reason in LOSS_REASONS if re.fullmatch(value, reason)}
                counted[rule["alert"]] = matched if operator == "=~" else {*LOSS_REASONS} - matched
    assert counted == {
        "Ti2vWorkerLosses": {reason for reason, policy in LOSSES.items() if policy.limit},
        "Ti2vStartsFailing": {"start_failed", "refused"},
        "Ti2vPreemptions": {"preempted", "drained"},
    }


def test_rules_say_what_to_do() -> None:
    rules = yaml.safe_load((ROOT / "dashboards" / "rules.yaml").read_text())["groups"][0]["rules"]
    for rule in rules:
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert len({rule["alert"] for rule in rules}) == len(rules)
