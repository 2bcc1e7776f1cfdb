"""What `/metrics` tells, in Prometheus' text format."""

from __future__ import annotations

import time
from collections import Counter

import torch

from dgmn2cli.runtime import can_measure, in_use

TYPE = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds


class Metrics:
    """Counts of a server since it began; changed by its event loop, `windows` and `busy` by the network's thread."""

    def __init__(self) -> None:
        self.began = time.time()
        self.requests: Counter[tuple[str, int]] = Counter()  # by path and status
        self.seconds: Counter[str] = Counter()  # in all, by path
        self.within: Counter[tuple[str, float]] = Counter()  # answered within a bound, by path
        self.windows = 0  # that went through the network
        self.busy = 0.0  # seconds of the network's thread

    def count(self, path: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self.requests[path, status] += 1
        self.seconds[path] += seconds  # type: ignore[assignment]  # counters take fractions, too
        for bound in BOUNDS:
            self.within[path, bound] += seconds <= bound

    def text(self, taken: int, places: int) -> str:
        """All of it; `taken` of the `places` for requests are taken now."""
        lines, name = ["# TYPE dgmn2_requests_total counter"], "dgmn2_request_seconds"
        for (path, status), count in sorted(self.requests.items()):
            lines.append(f'dgmn2_requests_total{{path="{path}",status="{status}"}} {count}')
        lines.append(f"# TYPE {name} histogram")
        for path, seconds in sorted(self.seconds.items()):
            count = sum(number for (of, _), number in self.requests.items() if of == path)
            for bound, within in [*((bound, self.within[path, bound]) for bound in BOUNDS), ("+Inf", count)]:
                lines.append(f'{name}_bucket{{path="{path}",le="{bound}"}} {within}')
            lines += [f'{name}_sum{{path="{path}"}} {seconds:.6f}', f'{name}_count{{path="{path}"}} {count}']
        values: list[tuple[str, str, float]] = [
            ("dgmn2_windows_total", "counter", self.windows),
            ("dgmn2_busy_seconds_total", "counter", round(self.busy, 6)),
            ("dgmn2_places", "gauge", places),
            ("dgmn2_places_taken", "gauge", taken),
            ("process_start_time_seconds", "gauge", round(self.began, 3)),
        ]
        if can_measure(torch.device("cpu")):
            values.append(("process_resident_memory_bytes", "gauge", in_use(torch.device("cpu"))))
        for name, kind, value in values:
            lines += [f"# TYPE {name} {kind}", f"{name} {value}"]
        return "\n".join(lines) + "\n"
