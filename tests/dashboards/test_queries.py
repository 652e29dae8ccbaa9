"""Queries: the helpers refuse what no metric has, and every panel and alert asks only for what is exported."""

import re

import pytest
import queries
from boards import BOARDS
from generate import rules

from condu_ray.orchestration.watch.meters import METRICS

promql = pytest.importorskip("promql", reason="promql-parser is not installed", exc_type=ImportError)
PANELS = [(name, panel) for name, board in BOARDS.items() for panel in board.panels]
RULES = [rule for group in rules() for rule in group["rules"]]
IDS = [f"{name}-{panel.title}" for name, panel in PANELS]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: queries.now("condu_lost"), "no metric 'condu_lost'"),
        (lambda: queries.now("condu_experts_wanted", "task"), "has no label task"),
        (lambda: queries.now("condu_experts_wanted", state="left"), "has no label state"),
        (lambda: queries.rate("condu_experts_wanted"), "is a gauge, not a counter"),
        (lambda: queries.total("condu_training_loss"), "is a gauge, not a counter"),
        (lambda: queries.latest("condu_faults_total"), "is a counter, not a gauge"),
        (lambda: queries.quantile(0.5, "condu_faults_total"), "is a counter, not a histogram"),
        (lambda: queries.series("condu_merge_seconds"), "suffix '' does not fit"),
        (lambda: queries.series("condu_faults_total", "_bucket"), "suffix '_bucket' does not fit"),
        (lambda: queries.ray("ray_node_mem_used", "Location"), "has no label Location"),
    ],
)
def test_what_no_metric_has_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (
            queries.now("condu_lanes_active", "run", how="sum"),
            'sum by (run) (last_over_time(ray_condu_lanes_active{run=~"($run)([.].*)?"}[1m]))',
        ),
        (
            queries.rate("condu_cache_lookups_total", result="hit"),
            'sum(rate(ray_condu_cache_lookups_total{run=~"($run)([.].*)?", result="hit"}[$__rate_interval]))',
        ),
        (
            queries.quantile(0.95, "condu_merge_seconds", "method"),
            "histogram_quantile(0.95, sum by (le, method) "
            '(last_over_time(ray_condu_merge_seconds_bucket{run=~"($run)([.].*)?"}[$__range])))',
        ),
        (queries.ray("ray_node_mem_used", how="max"), "max(last_over_time(ray_node_mem_used[1m]))"),
    ],
)
def test_what_is_made(made, expected):
    assert made == expected


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("ray_condu_lost", "nobody exports ray_condu_lost"),
        ('ray_condu_lanes_active{task="a"}', "has no task"),
        ("sum by (task) (ray_condu_lanes_active)", "by (task): ray_condu_lanes_active has none"),
        ("rate(ray_condu_lanes_active[1m])", "rate of the gauge"),
        ("avg_over_time(ray_condu_faults_total[1m])", "avg_over_time of the counter"),
        ("histogram_quantile(0.5, ray_condu_merge_seconds_count)", "no buckets"),
        ("vector(1)", "asks for nothing"),
        ("ray_condu_merge_seconds", "nobody exports"),
    ],
)
def test_the_check_finds(expression, words):
    assert any(words in problem for problem in promql.problems(expression))


@pytest.mark.parametrize(("name", "panel"), PANELS, ids=IDS)
def test_panels_ask_for_what_is_exported(name, panel):
    for expression, template in panel.queries:
        assert promql.problems(expression) == []
        used = set(re.findall(r"\{\{\s*(\w+)\s*\}\}", template))
        assert used <= promql.outer_labels(expression), "a legend names a label that the result has not"
        assert expression.count("$run") == len(re.findall(r"ray_condu_\w+", expression)), "the choice of runs counts"


@pytest.mark.parametrize(("name", "panel"), PANELS, ids=IDS)
def test_tables_are_grouped_by_their_labels(name, panel):
    assert (panel.kind == "table") == (panel.matrix is not None)
    if panel.matrix:
        assert set(panel.matrix) <= promql.outer_labels(panel.queries[0][0])


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_alerts_ask_for_what_is_exported(rule):
    assert promql.problems(rule["expr"]) == []
    labels = promql.outer_labels(rule["expr"]) | ({"instance"} if "up{" in rule["expr"] else set())
    assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= labels


def test_every_metric_is_shown_somewhere():
    shown = {name for _, panel in PANELS for expression, _ in panel.queries for name in promql.names(expression)}
    assert {
        metric.name
        for metric in METRICS.values()
        if not {metric.exported, f"{metric.exported}_bucket"} & shown
    } == set()  # fmt: skip


def test_every_name_of_rays_is_used():
    panels = {name for _, panel in PANELS for expression, _ in panel.queries for name in promql.names(expression)}
    alerts = {name for rule in RULES for name in promql.names(rule["expr"])}
    assert set(queries.RAY) <= panels | alerts
