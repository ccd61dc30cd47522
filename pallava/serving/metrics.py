"""Counts of a server, in the text form that Prometheus reads."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from pallava.serving.replies import Reply

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_PATHS = ("/", "/health", "/metrics", "/v1/models", "/v1/chat/completions", "/v1/reading")
_SIZES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """Counts of one server."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        labels = ["path", "status"]
        self._requests = Counter("pallava_requests", "Requests by path and status", labels, registry=registry)
        self.waiting = Gauge("pallava_waiting", "Requests that no batch has taken yet", registry=registry)
        self._running = Gauge("pallava_running", "Requests that are being answered, or wait", registry=registry)
        self._prompt = Counter("pallava_prompt_tokens", "Tokens of prompts, visual ones included", registry=registry)
        self._cached = Counter("pallava_cached_tokens", "Those of an earlier turn", registry=registry)
        self._new = Counter("pallava_generated_tokens", "Tokens of answers", registry=registry)
        self._batch = Histogram("pallava_batch_size", "Requests in a batch", buckets=_SIZES, registry=registry)
        self._first = Histogram(
            "pallava_first_text_seconds", "Seconds to the first word", buckets=_SECONDS, registry=registry
        )
        self._whole = Histogram(
            "pallava_request_seconds", "Seconds to the whole answer", buckets=_SECONDS, registry=registry
        )

    def note_status(self, path: str, status: int) -> None:
        """Count an answer; paths that the server does not have are counted as one."""
        self._requests.labels(path if path in _PATHS else "other", str(status)).inc()

    def note_batch(self, size: int) -> None:
        """Count a batch."""
        self._batch.observe(size)

    def note_first(self, seconds: float) -> None:
        """Count the time to the first piece of an answer."""
        self._first.observe(seconds)

    def note_running(self, change: int) -> None:
        """Count a request that is being answered, or waits (1), or has ended (-1)."""
        self._running.inc(change)

    def note_reply(self, reply: Reply, seconds: float) -> None:
        """Count an answer and the time that it took."""
        self._whole.observe(seconds)
        self._prompt.inc(reply.num_prompt_tokens)
        self._cached.inc(reply.num_cached_tokens)
        self._new.inc(reply.num_new_tokens)

    def to_text(self) -> bytes:
        """Return all counts."""
        return generate_latest(self._registry)


class Timing:
    """One request, timed from its arrival on."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics, self._start, self._has_text = metrics, time.monotonic(), False

    def note_text(self) -> None:
        """Note that a piece of the answer has come."""
        if not self._has_text:
            self._has_text = True
            self._metrics.note_first(time.monotonic() - self._start)

    def begin(self) -> None:
        """Count the request as one that is being answered, until `end`."""
        self._metrics.note_running(1)

    def end(self, reply: Reply | None) -> None:
        """End the request, with its reply or None."""
        self._metrics.note_running(-1)
        if reply is not None:
            self._metrics.note_reply(reply, time.monotonic() - self._start)
