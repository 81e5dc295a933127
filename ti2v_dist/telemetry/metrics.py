"""Every metric, declared once, and the endpoint that serves them. Times are in seconds.

Labels are bounded: a phase, an outcome, a measure or a class name; never a prompt, an id or a message.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from ti2v_dist.scheduling.losses import LOSSES

PHASES = ("queue_wait", "encode", "denoise", "decode", "commit")
OUTCOMES = ("finished", "failed", "resumed")
MEASURES = ("color", "sharpness", "motion")
LOSS_REASONS = (*LOSSES, "drained", "start_failed", "refused")
ENDPOINT_RETRY_S = 2.0
BUCKETS_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 90, 120)
BUCKETS_OF_SEAMS = (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 50)


class Metrics:
    """The metrics of one coordinator's life, in a registry of their own.

    The attributes are prometheus_client's objects. Known label values stand at 0 from the start, so that rates
    and alerts see the first event.
    """

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.frames = Counter("ti2v_frames_total", "Frames committed by this coordinator.", registry=registry)
        self.discarded = Counter(
            "ti2v_frames_discarded_total",
            "Frames in the hands of lost workers, or settled by another owner first: computed for nothing. "
            "A chunk that is lost with its worker counts as one.",
            registry=registry,
        )
        self.device_seconds = Counter(
            "ti2v_device_seconds_total", "Seconds that workers took for the calls that came back.", registry=registry
        )
        self.videos = Counter(
            "ti2v_videos_total",
            "Videos finished, failed for good, or taken up again from their checkpoint.",
            ["outcome"],
            registry=registry,
        )
        self.failures = Counter(
            "ti2v_failures_total", "Failures of videos by exception class.", ["error_type"], registry=registry
        )
        self.storage_retries = Counter(
            "ti2v_storage_retries_total",
            "Calls that met an outage of storage and were made again, by exception class.",
            ["error_type"],
            registry=registry,
        )
        self.worker_losses = Counter("ti2v_worker_losses_total", "Workers lost, by how.", ["reason"], registry=registry)
        self.frame_seconds = Histogram(
            "ti2v_frame_seconds", "Seconds of one frame by phase.", ["phase"], buckets=BUCKETS_S, registry=registry
        )
        self.seams = Histogram(
            "ti2v_seam_ratio",
            "Change across a join of a finished video's clips, as a ratio to the change inside of them.",
            ["measure"],
            buckets=BUCKETS_OF_SEAMS,
            registry=registry,
        )
        self.in_flight = Gauge("ti2v_videos_in_flight", "Videos admitted and not yet final.", registry=registry)
        self.waiting = Gauge("ti2v_videos_waiting", "Videos not yet admitted.", registry=registry)
        self.workers = Gauge("ti2v_workers", "Workers alive.", registry=registry)
        self.slots_used = Gauge(
            "ti2v_slots_used", "Batch slots that hold a video, over all workers.", registry=registry
        )
        self._start_at_zero()

    def _start_at_zero(self) -> None:
        for metric, values in (
            (self.frame_seconds, PHASES),
            (self.seams, MEASURES),
            (self.videos, OUTCOMES),
            (self.worker_losses, LOSS_REASONS),
        ):
            for value in values:
                metric.labels(value)
        # Used four times a frame: looking up a label's value takes longer than counting.
        self._of_phase = {phase: self.frame_seconds.labels(phase) for phase in PHASES}

    def observe(self, phase: str, seconds: float, frames: int = 1) -> None:
        """Record that each of `frames` frames took `seconds` in `phase`, one of `PHASES`."""
        assert phase in PHASES, phase
        histogram = self._of_phase[phase]
        for _ in range(frames):
            histogram.observe(seconds)

    def count_video(self, outcome: str) -> None:
        """Count one video; `outcome` is one of `OUTCOMES`."""
        assert outcome in OUTCOMES, outcome
        self.videos.labels(outcome).inc()

    def observe_seams(self, joins: Iterable[Mapping[str, float]]) -> None:
        """Record the figures of a finished video's joins, each by the names of `MEASURES`."""
        for join in joins:
            for measure in MEASURES:
                self.seams.labels(measure).observe(join[measure])

    def count_failure(self, error_type: str) -> None:
        """Count one failed video under its exception's class name."""
        self.failures.labels(_class_name(error_type)).inc()

    def count_storage_retry(self, error_type: str) -> None:
        """Count one call that storage did not answer, under its exception's class name."""
        self.storage_retries.labels(_class_name(error_type)).inc()

    def count_worker_loss(self, reason: str) -> None:
        """Count one lost worker; `reason` is one of `LOSS_REASONS`."""
        assert reason in LOSS_REASONS, reason
        self.worker_losses.labels(reason).inc()

    def usage(self) -> dict[str, float]:
        """What this life has cost so far."""
        values = self.snapshot()

        def count(name: str) -> int:
            return round(sum(value for series, value in values.items() if series.partition("{")[0] == name))

        return {
            "device_seconds": round(values["ti2v_device_seconds_total"], 3),
            "frames_discarded": count("ti2v_frames_discarded_total"),
            "worker_losses": count("ti2v_worker_losses_total"),
            "storage_retries": count("ti2v_storage_retries_total"),
        }

    def snapshot(self) -> dict[str, float]:
        """Every value but the histograms' buckets by its exposed name: `{'ti2v_videos_total{outcome="failed"}': 2.0}`.

        Totals and `_count` are counts, `_sum` is in seconds; that of `ti2v_seam_ratio` is a sum of ratios.
        """
        return {
            _series_name(sample.name, sample.labels): sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if not sample.name.endswith(("_bucket", "_created"))
        }

    def percentiles(self) -> dict[str, dict[str, float]]:
        """p50, p95 and p99 of each phase's seconds, interpolated within the histogram's buckets as Prometheus does."""
        found: dict[str, dict[str, float]] = {}
        for phase in PHASES:
            (family,) = self.frame_seconds.labels(phase).collect()
            buckets = [
                (float(sample.labels["le"]), sample.value)
                for sample in family.samples
                if sample.name.endswith("_bucket")
            ]
            if buckets[-1][1]:
                found[phase] = {f"p{share}": round(_quantile(share / 100, buckets), 4) for share in (50, 95, 99)}
        return found

    def serve(self, port: int = 0, addr: str = "127.0.0.1") -> tuple[str, Callable[[], None]]:
        """Serve the metrics over HTTP from a daemon thread; returns the URL and a function that stops it.

        Port 0 takes a free one. Raises `OSError` when the port is taken.
        """
        server, thread = start_http_server(port, addr, self.registry)

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        host = f"[{addr}]" if ":" in addr else addr
        return f"http://{host}:{server.server_port}/metrics", stop


class Endpoint:
    """Where a run's metrics are served. A run does not end for want of it: a port that is taken is asked for again.

    `url` is None until then, and `problem` says why.
    """

    def __init__(self, metrics: Metrics, port: int, addr: str) -> None:
        self.metrics, self.port, self.addr = metrics, port, addr
        self.url: str | None = None
        self.problem: str | None = None
        self._stop: Callable[[], None] = lambda: None
        self._open()

    def _open(self) -> None:
        try:
            self.url, self._stop = self.metrics.serve(self.port, self.addr)
            self.problem = None
        except OSError as error:
            self.problem = f"metrics are not served at {self.addr}:{self.port} yet: {error.strerror}"

    async def keep_trying(self) -> None:
        """Serve as soon as that is possible: what holds the port may be an owner of the run that is on its way out."""
        while not self.url:
            await asyncio.sleep(ENDPOINT_RETRY_S)
            self._open()

    def close(self) -> None:
        """Serve no more."""
        self._stop()


def _quantile(share: float, buckets: list[tuple[float, float]]) -> float:
    """A quantile from cumulative (upper bound, count) buckets; beyond the last bound, that bound."""
    wanted, below, counted = share * buckets[-1][1], 0.0, 0.0
    for bound, count in buckets:
        if count >= wanted:
            return below if bound == float("inf") else below + (bound - below) * (wanted - counted) / (count - counted)
        below, counted = bound, count
    return below


def _class_name(error_type: str) -> str:
    """The label's value; anything but a class name counts as `other`."""
    is_class_name = error_type.isidentifier() and error_type.isascii() and len(error_type) <= 64
    return error_type if is_class_name else "other"


def _series_name(name: str, labels: dict[str, str]) -> str:
    inside = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    return f"{name}{{{inside}}}" if inside else name
