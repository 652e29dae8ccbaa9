"""Numbers for Prometheus, through Ray's own exporter: given by name, and never felt by the work that they tell of.

Where Ray is not up, or its exporter fails, nothing happens; a metric that fails says so once in the log. What metrics
there are is in `meters.py`; which calls name one wrongly, a test finds (tests/orchestration/test_telemetry.py).

What a process counted since its last export (every 10 s) is lost when it is killed, and exported when it ends in order:
so what has to be exact, the driver tells. A gauge vanishes two export intervals after it was last set, so those that
are `held` are set again every few seconds for as long as their process lives: a process that hangs still shows its last
state, one that died shows none.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from condu_ray.orchestration.watch.meters import METRICS, Kind, Metric

log = logging.getLogger(__name__)

BEAT_SECONDS = 2.0
"""How often held gauges are set again: well within Ray's export interval, 10 s unless it is set otherwise."""

_Key = tuple[str, tuple[tuple[str, str], ...]]
_lock = threading.Lock()
_objects: dict[str, Any] = {}
_held: dict[_Key, float] = {}
_failed: set[str] = set()
_thread: threading.Thread | None = None


class MetricError(ValueError):
    """A metric that is not in the registry, of another kind, or with other tags; the message says what it has."""


def check(name: str, tags: Mapping[str, object], kind: Kind | None = None) -> Metric:
    """Returns the metric of a name.

    Args:
        name: as in the registry.
        tags: what is given with it; their keys have to be the metric's, no more and no fewer.
        kind: what it is used as; None for any.

    Raises:
        MetricError: name, kind or tags do not fit.
    """
    metric = METRICS.get(name)
    if metric is None:
        raise MetricError(f"no metric {name!r}; condu_ray/orchestration/watch/meters.py lists them all")
    if kind is not None and kind != metric.kind:
        raise MetricError(f"{name} is a {metric.kind}, not a {kind}")
    if set(tags) != set(metric.tags):
        raise MetricError(f"{name} has the tags {', '.join(metric.tags)}, not {', '.join(sorted(tags)) or 'none'}")
    return metric


def inc(name: str, value: float = 1.0, /, **tags: object) -> None:
    """Adds to a counter; 0 does nothing."""
    if value != 0:
        _send("counter", name, value, tags)


def gauge(name: str, value: float, /, **tags: object) -> None:
    """Sets a gauge; NaN and infinity are left out."""
    _send("gauge", name, value, tags)


def observe(name: str, value: float, /, **tags: object) -> None:
    """Puts a value into a histogram."""
    _send("histogram", name, value, tags)


@contextmanager
def busy(name: str, /, **tags: object) -> Iterator[None]:
    """Adds the seconds that the block takes, whether it ends well or not, to a counter."""
    begin = time.perf_counter()
    try:
        yield
    finally:
        inc(name, time.perf_counter() - begin, **tags)


def restarted(part: str, run: str) -> None:
    """Counts a fault when the actor that this is called in, at its start, is not there for the first time."""
    ray = _ray()
    if ray is None:
        return
    try:
        context = ray.get_runtime_context()
        if context.get_actor_id() is not None and context.was_current_actor_reconstructed:
            inc("condu_faults_total", part=part, run=run)
    except Exception as error:
        _warn("condu_faults_total", error)


def forget(**tags: object) -> None:
    """Lets those held gauges vanish that have all of these tags; without tags, all of this process."""
    wanted = {(key, str(value)) for key, value in tags.items()}
    with _lock:
        for key in [key for key in _held if wanted <= set(key[1])]:
            del _held[key]


def beat() -> bool:
    """Sets all held gauges again.

    Returns:
        Whether Ray is up; where it is not (any more), they are forgotten: the next cluster is another run's.
    """
    if _ray() is None:
        forget()
        return False
    with _lock:
        held = list(_held.items())
    for (name, labels), value in held:
        _record(METRICS[name], value, dict(labels))
    return True


def _ray() -> Any:
    """Ray, when this process is connected to a cluster; it is not imported for the question."""
    ray = sys.modules.get("ray")
    try:
        return ray if ray is not None and ray.is_initialized() else None
    except Exception:  # half imported, by another thread
        return None


def _send(kind: Kind, name: str, value: float, tags: Mapping[str, object]) -> None:
    if _ray() is None:
        return
    try:
        metric, number = check(name, tags, kind), float(value)
        if not math.isfinite(number):
            return
        labels = {tag: str(tags[tag]) for tag in metric.tags}
        if metric.held:
            with _lock:
                _held[name, tuple(labels.items())] = number
            _start()
    except Exception as error:
        _warn(name, error)
        return
    _record(metric, number, labels)


def _record(metric: Metric, value: float, labels: dict[str, str]) -> None:
    try:
        made = _objects.get(metric.name)
        if made is None:
            made = _objects.setdefault(metric.name, _make(metric))
        if metric.kind == "counter":
            made.inc(value, tags=labels)
        elif metric.kind == "gauge":
            made.set(value, tags=labels)
        else:
            made.observe(value, tags=labels)
    except Exception as error:
        _warn(metric.name, error)


def _make(metric: Metric) -> Any:
    """Returns Ray's object for a metric."""
    from ray.util import metrics

    if metric.kind == "counter":
        return metrics.Counter(metric.name, metric.description, metric.tags)
    if metric.kind == "gauge":
        return metrics.Gauge(metric.name, metric.description, metric.tags)
    return metrics.Histogram(metric.name, metric.description, list(metric.bounds), metric.tags)


def _warn(name: str, error: Exception) -> None:
    if name not in _failed:
        _failed.add(name)
        log.warning("the metric %s is not exported: %s", name, error)


def _start() -> None:
    """Starts the heartbeat, unless it beats; it ends by itself with the cluster."""
    global _thread
    with _lock:
        if _thread is None or not _thread.is_alive():
            _thread = threading.Thread(target=_beat, name="telemetry", daemon=True)
            _thread.start()


def _beat() -> None:
    while beat():
        time.sleep(BEAT_SECONDS)
