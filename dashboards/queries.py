"""PromQL for the metrics of the registry, with the function that fits a metric's kind; wrong names or labels raise.

- A counter is only ever the sum of its processes' increases: `rate` over time, `total` for all there was. `total` adds
  the last value of every process, so it also has what a counter began with, which `increase` does not see.
- A gauge vanishes when its process does, or soon after it was last set: `now` looks back a minute, which bridges a
  missed scrape, and `latest` over the time that the dashboard shows, which outlives the run. There may then be several
  processes that said the same thing one after the other, such as the drivers of a run that was killed and gone on with:
  the one that said it last counts.
- Of a histogram Ray keeps the buckets and sets each value to the middle of its own, so quantiles are as good as the
  bounds; `_sum` is not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from condu_ray.orchestration.watch.meters import METRICS, Metric

RUN = 'run=~"($run)([.].*)?"'
"""The chosen runs; of a sweep also its trials, whose names begin with its own and a dot."""

RAY: Mapping[str, tuple[str, ...]] = {
    "ALERTS": ("alertname", "alertstate", "severity", "run"),
    "ray_node_cpu_utilization": (),
    "ray_node_gpus_utilization": ("GpuIndex", "GpuDeviceName"),
    "ray_node_mem_total": (),
    "ray_node_mem_used": (),
    "ray_object_store_memory": ("Location",),
    "ray_train_controller_state": ("ray_train_run_name", "ray_train_run_id", "ray_train_controller_state"),
    "ray_train_report_total_blocked_time_s": ("ray_train_run_name", "ray_train_run_id", "ray_train_worker_world_rank"),
    "ray_train_worker_group_start_total_time_s": ("ray_train_run_name", "ray_train_run_id"),
    "up": (),
}
"""What is used besides the registry, of Ray and of Prometheus itself, and its labels."""

EVERYWHERE = ("instance", "job", "NodeAddress", "SessionName", "WorkerId")
"""Labels of every series: Prometheus' own, and Ray's for what a worker exports."""


def _labels(metric: Metric, labels: Mapping[str, str], by: Sequence[str]) -> None:
    unknown = (set(labels) | set(by)) - set(metric.tags) - set(EVERYWHERE)
    if unknown:
        raise ValueError(f"{metric.name} has no label {', '.join(sorted(unknown))}; it has {', '.join(metric.tags)}")


def series(name: str, suffix: str = "", by: Sequence[str] = (), **labels: str) -> str:
    """Returns the selector of a metric of ours in the chosen runs.

    Args:
        name: as in the registry.
        suffix: `_bucket` or `_count`, of a histogram.
        by: labels that the caller groups by, which are checked here.
        **labels: values of tags.

    Raises:
        ValueError: no such metric, or it has no such tag.
    """
    if name not in METRICS:
        raise ValueError(f"no metric {name!r} in condu_ray/orchestration/watch/meters.py")
    metric = METRICS[name]
    _labels(metric, labels, by)
    if (metric.kind == "histogram") != (suffix in ("_bucket", "_count")):
        raise ValueError(f"{name} is a {metric.kind}: the suffix {suffix!r} does not fit")
    matchers = ", ".join([RUN, *(f'{label}="{value}"' for label, value in labels.items())])
    return f"{metric.exported}{suffix}{{{matchers}}}"


def _kind(name: str, *kinds: str) -> None:
    if name in METRICS and METRICS[name].kind not in kinds:
        raise ValueError(f"{name} is a {METRICS[name].kind}, not a {' or '.join(kinds)}")


def _grouped(how: str, by: Sequence[str], inner: str) -> str:
    return f"{how} by ({', '.join(by)}) ({inner})" if by else f"{how}({inner})"


def now(name: str, *by: str, how: str = "max", **labels: str) -> str:
    """A gauge as it is; a gap where its work is not done."""
    _kind(name, "gauge")
    return _grouped(how, by, f"last_over_time({series(name, by=by, **labels)}[1m])")


def latest(name: str, *by: str, how: str = "max", **labels: str) -> str:
    """A gauge as it last was in the time that is shown, by the process that set it last."""
    _kind(name, "gauge")
    gauge = series(name, by=by, **labels)
    newest = f"topk by ({', '.join(METRICS[name].tags)}) (1, max_over_time(timestamp({gauge})[$__range:15s]))"
    return _grouped(how, by, f"last_over_time({gauge}[$__range]) and {newest}")


def rate(name: str, *by: str, **labels: str) -> str:
    """A counter's increase a second."""
    _kind(name, "counter")
    return _grouped("sum", by, f"rate({series(name, by=by, **labels)}[$__rate_interval])")


def total(name: str, *by: str, **labels: str) -> str:
    """All that a counter counted, in processes that were seen in the time that is shown."""
    _kind(name, "counter")
    return _grouped("sum", by, f"last_over_time({series(name, by=by, **labels)}[$__range])")


def quantile(share: float, name: str, *by: str, **labels: str) -> str:
    """A quantile over all values so far, for work that is done now and then; a rate would mostly see nothing."""
    _kind(name, "histogram")
    inner = f"last_over_time({series(name, '_bucket', by=by, **labels)}[$__range])"
    return f"histogram_quantile({share:g}, {_grouped('sum', ('le', *by), inner)})"


def ray(name: str, *by: str, how: str = "sum", window: str = "1m", **labels: str) -> str:
    """One of `RAY`'s metrics, all of which are gauges; it is the cluster's and not a run's."""
    unknown = (set(labels) | set(by)) - set(RAY[name]) - set(EVERYWHERE)
    if unknown:
        raise ValueError(f"{name} has no label {', '.join(sorted(unknown))}")
    matchers = ", ".join(f'{label}="{value}"' for label, value in labels.items())
    selector = f"{name}{{{matchers}}}" if matchers else name
    return _grouped(how, by, f"last_over_time({selector}[{window}])")
