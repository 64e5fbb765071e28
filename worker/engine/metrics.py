"""What Prometheus is told about one engine."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_STEP_BUCKETS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56)


class Metrics:
    """Counters of one engine in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.rows = self._gauge("rows", "Rows that hold a slot.")
        self.waiting = self._gauge("waiting", "Rows that wait for a slot or an adapter.")
        self.adapters = self._gauge("adapters_resident", "Adapter versions in memory.")
        self.adapter_bytes = self._gauge("adapters_bytes", "Bytes of adapters in memory.")
        self.adapter_loads = Counter(
            "graftwork_engine_adapter_loads", "Adapters loaded.", registry=self.registry
        )
        self.tokens = Counter(
            "graftwork_engine_tokens", "Tokens computed.", ["kind"], registry=self.registry
        )
        self._prompt, self._cached, self._completion, self._drafted, self._accepted = (
            self.tokens.labels(kind)
            for kind in ("prompt", "cached", "completion", "drafted", "accepted")
        )
        self.faults = Counter(
            "graftwork_engine_faults", "Requests ended by a fault.", registry=self.registry
        )
        self.step_seconds = Histogram(
            "graftwork_engine_step_seconds",
            "Time of one forward and its sampling; the mean of those that follow each other.",
            buckets=_STEP_BUCKETS,
            registry=self.registry,
        )

    def render(self, health: dict[str, Any]) -> bytes:
        """Return everything in Prometheus' text format; gauges are read off a health report."""
        residents = health.get("resident", [])
        self.rows.set(health.get("rows", 0))
        self.waiting.set(health.get("waiting", 0))
        self.adapters.set(len(residents))
        self.adapter_bytes.set(sum(resident["bytes"] for resident in residents))
        return generate_latest(self.registry)

    def count_steps(self, steps: int, *, seconds: float) -> None:
        """Count steps that followed each other, in so much time altogether."""
        for _ in range(steps):
            self.step_seconds.observe(seconds / steps)

    def count_prompt(self, computed: int, *, cached: int) -> None:
        """Count the tokens of a prompt that a step computes, and those that none had to."""
        self._prompt.inc(computed)
        self._cached.inc(cached)

    def count_drawn(self, tokens: int, *, accepted: int = 0, rejected: int = 0) -> None:
        """Count tokens that rows take in a step, and what became of those drafted."""
        self._completion.inc(tokens)
        if accepted or rejected:
            self._drafted.inc(accepted + rejected)
            self._accepted.inc(accepted)

    def _gauge(self, name: str, description: str) -> Gauge:
        return Gauge(f"graftwork_engine_{name}", description, registry=self.registry)
