"""For whoever runs it: is it healthy, how far is it, what does it learn, what does it use."""

from dataclasses import replace

from panels import GREEN, RED, Board, Panel
from queries import latest, series, total

from boards.shared import (
    ACCURACY,
    ALERTS,
    CACHE,
    CPU,
    EVALUATORS_BUSY,
    EXPERTS,
    FAULTS,
    IMAGES,
    LANES,
    LOSS,
    MEMORY,
    QUEUE,
    SINCE_PROGRESS,
    SLOW,
    STORAGE,
    WAITING,
    tile,
)

PROGRESS = series("condu_last_progress_timestamp_seconds")

OVERVIEW = Board(
    "condu-overview",
    "condu_ray: overview",
    "One look at a run: the first line is green while all is well.",
    [
        (
            "Health",
            [
                tile(
                    "Run",
                    "Healthy: the driver saw progress within 5 minutes and none of our alerts fires. Otherwise "
                    "look at what is yellow or red beside it, and at the alerts in Prometheus. Not running: no "
                    "driver exports.",
                    [(f"(time() - max({PROGRESS}) < bool {SLOW}) * on () (({ALERTS}) == bool 0)", "")],
                    steps=((None, RED), (1, GREEN)),
                    empty="not running",
                    mappings={"1": ("healthy", GREEN), "0": ("look", RED)},
                ),
                SINCE_PROGRESS,
                tile(
                    "Alerts",
                    "Alerts of dashboards/prometheus/alerts.yml that fire. What each means is in dashboards/README.md.",
                    [(ALERTS, "")],
                    steps=((None, GREEN), (1, RED)),
                ),
                FAULTS,
                STORAGE,
                LANES,
            ],
        ),
        (
            "How far",
            [
                EXPERTS,
                tile(
                    "Sessions",
                    "Sessions that were merged and committed, of all sessions of all methods. What an earlier "
                    "call of the same command committed is not counted again.",
                    [
                        (f"{total('condu_sessions_committed_total')} or vector(0)", "committed"),
                        (latest("condu_sessions_wanted", how="sum"), "wanted"),
                    ],
                ),
                Panel(
                    "Sessions measured",
                    "Sessions that are measured on every task, by method and protocol. A run ends when all are.",
                    [(total("condu_sessions_measured_total", "method", "space"), "{{method}}, {{space}}")],
                    "bargauge",
                    width=8,
                    height=4,
                    low=0,
                ),
                replace(CACHE, height=4),
            ],
        ),
        ("What it learns", [ACCURACY, LOSS, IMAGES]),
        ("What waits, and what is used", [QUEUE, WAITING, EVALUATORS_BUSY, CPU, MEMORY]),
    ],
)
