"""Numbers as a run would export them, for every metric of the registry and of Ray's, in OpenMetrics' text form."""

import itertools

from queries import RAY

from condu_ray.orchestration.watch.meters import METRICS

TAGS = {
    "run": ("r",), "method": ("condu", "pam"), "task": ("walls", "doors"), "lane": ("0", "1"), "rank": ("0",),
    "part": ("lane",), "what": ("expert", "measurement"), "result": ("hit", "miss"), "space": ("task",),
    "state": ("finished", "left"),
}  # fmt: skip
RAYS = {
    "ray_train_run_name": ("lane0-a",), "ray_train_run_id": ("1",), "ray_train_controller_state": ("RUNNING",),
    "ray_train_worker_world_rank": ("0",), "GpuIndex": ("0",), "GpuDeviceName": ("card",), "Location": ("MMAP_SHM",),
}  # fmt: skip
STEP = 15
BEFORE = 24
"""Samples of a driver that was there before, in gauges."""
EARLIER = {"ratio": 0.9, "seconds": 7}
"""What they said, by unit; else 3."""


def combinations(values, names):
    for chosen in itertools.product(*(values[name] for name in names)):
        yield ",".join(f'{name}="{value}"' for name, value in zip(names, chosen, strict=True))


def value(metric, index, at):
    """A gauge's or counter's value at its `index`-th sample."""
    if metric.kind == "counter":
        return index + 1
    if metric.name == "condu_last_progress_timestamp_seconds":
        return at - 7
    return {"ratio": 0.5, "bytes": 3e9}.get(metric.unit, 5)


def ours(metric, labels, times):
    labels += ',WorkerId="w",instance="n:8080",job="ray"'
    if metric.kind == "gauge":  # a driver before, which was killed after some minutes
        before = labels.replace('"w"', '"before"')
        yield from ((f"{metric.exported}{{{before}}}", EARLIER.get(metric.unit, 3), at) for at in times[:BEFORE])
        times = times[BEFORE:]
    for index, at in enumerate(times):
        if metric.kind == "histogram":
            for number, bound in enumerate([*map(float, metric.bounds), "+Inf"]):
                yield f'{metric.exported}_bucket{{{labels},le="{bound}"}}', (number + 1) * (index + 1), at
            yield f"{metric.exported}_count{{{labels}}}", (len(metric.bounds) + 1) * (index + 1), at
        else:
            yield f"{metric.exported}{{{labels}}}", value(metric, index, at), at


def openmetrics(start, end):
    """All series from `start` to `end` (Unix seconds)."""
    times = range(int(start), int(end) + 1, STEP)
    lines = []
    for metric in METRICS.values():
        for labels in combinations(TAGS, metric.tags):
            lines += ours(metric, labels, times)
    for name, keys in RAY.items():
        if name not in ("ALERTS", "up"):
            for labels in combinations(RAYS, keys):
                full = labels + ("," if labels else "") + 'instance="n:8080",job="ray"'
                lines += [(f"{name}{{{full}}}", 1 if "state" in name else 40, at) for at in times]
    series = {}
    for name, number, at in lines:
        series.setdefault(name, []).append(f"{name} {number} {at}")
    return "\n".join(itertools.chain(*series.values(), ["# EOF", ""]))
