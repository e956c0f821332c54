"""What operators see of calls: one log line a request, and Prometheus metrics.

Labels and lines hold the catalogue's and the tables' own words, and ids; never a caller's text, so their number is
bounded and nothing secret gets in. The one exception, the path of a refused request, is redacted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from penstock.clock import Clock, iso
from penstock.db.records import UsageRecord
from penstock.figures import Figures
from penstock.log import RequestLog
from penstock.relay.tally import Buckets, Calls, Counters, Gauge, Gauges

if TYPE_CHECKING:
    from prometheus_client import Metric

FAST = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1.0)  # seconds of our own
SLOW = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0)  # seconds with the model's
LONGEST_PATH = 200


class Observer:
    """Counts and logs. One per process, shared by the data path, the doors and upkeep.

    Where several processes serve, `total` gets the figures of all of them.
    """

    def __init__(self, log: RequestLog, clock: Clock, redact: Callable[[str], str]) -> None:
        self._log = log
        self._clock = clock
        self._redact = redact
        self.total: Callable[[], Awaitable[Figures]] | None = None
        self._calls = Calls()
        self._collected: list[Calls | Counters | Buckets | Gauge | Gauges] = [self._calls]
        self._refused = self._counters(
            "penstock_refused_requests", "Requests refused, by kind of error.", ("surface", "kind")
        )
        self._upstream_errors = self._counters(
            "penstock_upstream_errors", "Attempts at a provider that failed, by kind of error.", ("provider", "kind")
        )
        self._failovers = self._counters(
            "penstock_failovers", "Calls that went on from a provider that failed to the next.", ("provider", "next")
        )
        self._total = self._buckets("penstock_request_seconds", "From request to last byte.", SLOW)
        self._first_byte = self._buckets("penstock_first_byte_seconds", "From request to first byte.", SLOW)
        self._added = self._buckets("penstock_added_seconds", "Time a call spent in the gateway itself.", FAST)
        self._admission = self._buckets("penstock_admission_seconds", "Time to set the money aside.", FAST)
        self._lag = self._buckets("penstock_event_loop_lag_seconds", "How late the event loop runs.", FAST)
        self.admitted = self._admission.observe  # seconds until the store had decided on a request

    def __repr__(self) -> str:
        return f"Observer({self._calls!r})"

    def closed(self, record: UsageRecord, added_s: float) -> None:
        """A call that held money has ended."""
        labels = (record.surface, record.model, record.provider, record.lane, record.ended)
        self._calls.add(labels, record.input_tokens, record.output_tokens, record.cost_nano)
        self._total.observe(record.total_us / 1e6)
        if record.first_byte_us is not None:
            self._first_byte.observe(record.first_byte_us / 1e6)
            self._added.observe(added_s)
        self._log.write(_line(record))

    def refused(self, *, request_id: str, surface: str, kind: str, status: int, path: str) -> None:
        """A request was answered with an error of ours before it held money, or because it could not."""
        self._refused.add((surface, kind))
        self._log.write(
            {
                "time": iso(self._clock.now_ms()),
                "event": "refused",
                "request_id": request_id,
                "surface": surface,
                "path": self._redact(path[:LONGEST_PATH]),
                "status": status,
                "kind": kind,
            }
        )

    def failed_upstream(self, provider: str, kind: str) -> None:
        """An attempt at a provider failed."""
        self._upstream_errors.add((provider, kind))

    def failed_over(self, provider: str, next: str) -> None:
        """A call goes on to the next provider, or once more to the same."""
        self._failovers.add((provider, next))

    def lagged(self, seconds: float) -> None:
        """The event loop came back so late."""
        self._lag.observe(max(0.0, seconds))

    def gauge(self, name: str, help: str, read: Callable[[], float], labels: Mapping[str, str] | None = None) -> None:
        """Show a figure that is read when metrics are."""
        self._collected.append(Gauge(name, help, read, labels or {}))

    def gauges(
        self, name: str, help: str, labels: Sequence[str], read: Callable[[], Mapping[tuple[str, ...], float]]
    ) -> None:
        """Show figures by labels that are read when metrics are."""
        self._collected.append(Gauges(name, help, labels, read))

    def flush(self) -> None:
        """Put away what has gathered: several times a second, and at the end."""
        for each in (self._total, self._first_byte, self._added, self._admission, self._lag):
            each.sort()
        self._log.flush()

    def figures(self) -> Figures:
        """The metrics of this process."""
        return tuple(family for each in self._collected for family in each.collect())

    async def render(self) -> bytes:
        """The metrics of all serving processes in Prometheus' text format."""
        from prometheus_client import generate_latest  # noqa: PLC0415 -- 40 ms of a start that nobody looks at

        return generate_latest(_Shown(self.figures() if self.total is None else await self.total()))

    def _counters(self, name: str, help: str, labels: Sequence[str]) -> Counters:
        counters = Counters(name, help, labels)
        self._collected.append(counters)
        return counters

    def _buckets(self, name: str, help: str, bounds: Sequence[float]) -> Buckets:
        buckets = Buckets(name, help, bounds)
        self._collected.append(buckets)
        return buckets


class _Shown:
    """Figures as the client library wants them for rendering: a registry, as far as it asks for one."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def __repr__(self) -> str:
        return f"_Shown({len(self._figures)} families)"

    def collect(self) -> Iterable[Metric]:
        from prometheus_client import Metric  # noqa: PLC0415 -- see `render`

        for family in self._figures:
            metric = Metric(family.name, family.help, family.kind)
            for sample in family.samples:
                metric.add_sample(sample.name, dict(sample.labels), sample.value)
            yield metric


class CallLine(Struct, frozen=True, gc=False):
    """The log line of a call, in the order in which it is written."""

    time: str
    event: str
    request_id: str
    account: str
    key: str
    surface: str
    model: str
    provider: str
    attempts: int
    status: int
    ended: str
    input_tokens: int
    output_tokens: int
    owed: int
    asset: str
    estimated: int
    first_byte_us: int | None
    total_us: int


def _line(record: UsageRecord) -> CallLine:
    return CallLine(
        iso(record.created_ms),
        "call",
        record.request_id,
        record.account_id,
        record.credential_id,
        record.surface,
        record.model,
        record.provider,
        record.attempts,
        record.status,
        record.ended,
        record.input_tokens,
        record.output_tokens,
        record.amount,
        record.asset,
        record.estimated,
        record.first_byte_us,
        record.total_us,
    )
