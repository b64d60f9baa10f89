"""What `/metrics` tells, as Prometheus reads it."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from shoestring.decode import AnswerSpent
from shoestring.serve.engine_thread import EngineStep

DELAYS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Seconds between the bars of histograms."""


class Metrics:
    """Counts of one server, by model."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, said: str, *labels: str) -> Counter:
            return Counter(f"shoestring_{name}", said, labels, registry=self.registry)

        def gauge(name: str, said: str) -> Gauge:
            return Gauge(f"shoestring_{name}", said, ("model",), registry=self.registry)

        def histogram(name: str, said: str) -> Histogram:
            return Histogram(f"shoestring_{name}", said, ("model",), registry=self.registry, buckets=DELAYS)

        self._requests = counter("requests", "Requests, by path and status", "path", "status")
        self._refused = counter("refused", "Requests that were not taken in, by reason", "reason")
        self._tokens = counter("tokens", "Positions read, reused, written and wasted", "model", "kind")
        self._flops = counter("flops", "Floating-point operations", "model")
        self._moved = counter("moved_bytes", "Bytes of weights and cache that were read", "model")
        self._seconds = counter("answer_seconds", "Seconds of answers, by cause", "model", "cause")
        self._passes = counter("passes", "Passes of the engine", "model")
        self._waiting = gauge("waiting_answers", "Answers that have no place yet")
        self._running = gauge("unfinished_answers", "Answers that are not at their end")
        self._free = gauge("cache_free_tokens", "Tokens that the cache has room for")
        self._capacity = gauge("cache_tokens", "Tokens that the cache has room for where nobody uses it")
        self._first = histogram("first_token_seconds", "From a request to the first token of its answer")
        self._between = histogram("between_tokens_seconds", "Between tokens of an answer")
        self._pass = histogram("pass_seconds", "Of a pass")

    def answered(self, path: str, status: int) -> None:
        """A request has had its answer."""
        self._requests.labels(path, str(status)).inc()

    def refused(self, reason: str) -> None:
        """A request was not taken in."""
        self._refused.labels(reason).inc()

    def has_room(self, model: str, capacity: int) -> None:
        """An engine has this much room."""
        self._capacity.labels(model).set(capacity)
        self._free.labels(model).set(capacity)
        self._waiting.labels(model).set(0)
        self._running.labels(model).set(0)

    def passed(self, model: str, happened: EngineStep, unfinished: int) -> None:
        """An engine made a step."""
        if happened.places:
            self._passes.labels(model).inc()
            self._pass.labels(model).observe(happened.seconds)
        self._waiting.labels(model).set(happened.waiting)
        self._free.labels(model).set(happened.free)
        self._running.labels(model).set(unfinished)

    def ended(self, model: str, spent: AnswerSpent) -> None:
        """An answer is at its end."""
        charge = spent.charge
        for kind in ("read", "reused", "written", "wasted"):
            self._tokens.labels(model, kind).inc(getattr(charge, kind))
        self._flops.labels(model).inc(charge.flops)
        self._moved.labels(model).inc(charge.moved)
        self._count_seconds(model, spent.seconds)
        if spent.first is not None:
            self._first.labels(model).observe(spent.first)
        for seconds in spent.between:
            self._between.labels(model).observe(seconds)

    def _count_seconds(self, model: str, seconds: Mapping[str, float]) -> None:
        for cause, amount in seconds.items():
            self._seconds.labels(model, cause).inc(amount)

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self.registry)
