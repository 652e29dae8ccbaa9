"""A run, scraped every second: every panel that it can fill has data, every metric arrives under its name."""

import re
import shutil
import tempfile
import time
from pathlib import Path

import generate
import pytest
import yaml
from boards import BOARDS
from reading import ask, filled_in
from server import prometheus

from condu_ray.orchestration.watch.discovery import PATTERN
from condu_ray.orchestration.watch.meters import METRICS
from tests.orchestration.job import Job

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not installed"),
]
NOT_HERE = {"gpu": "no GPU", "sweep": "no sweep", "report": "nothing calls ray.train.report"}
"""Why a panel may be empty; `Panel.needs` names the panels."""
QUIET = {
    "condu_trials", "condu_trial_seconds",  # a sweep's
    "condu_gpu_memory_bytes",  # a GPU's
    "condu_faults_total", "condu_diverged_total",  # nothing fails here
}  # fmt: skip


class Scraped(Job):
    """The main job with a temporary folder of Ray's own, so that only its cluster is found, and with quick exports."""

    def __init__(self, storage, task_data, small_backbone, temporary):
        environment = {"RAY_TMPDIR": str(temporary), "RAY_metrics_report_interval_ms": "500"}
        method = "condu,sequential,zero-shot"
        super().__init__(storage, task_data, small_backbone, method=method, steps=60, environment=environment)


@pytest.fixture(scope="module")
def temporary():
    """Short, for a socket's path holds 107 characters and Ray appends some 70."""
    folder = Path(tempfile.mkdtemp(prefix="condu"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def scraped(tmp_path_factory, temporary, task_data, small_backbone):
    """Prometheus' address after a run, and the run's beginning and end."""
    folder = tmp_path_factory.mktemp("scraped")
    settings = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(generate.HERE / "prometheus" / "alerts.yml")],
        "scrape_configs": [
            {
                "job_name": "ray",
                "file_sd_configs": [{"files": [str(temporary / "ray" / PATTERN)], "refresh_interval": "1s"}],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    with prometheus(folder / "prometheus.yml", folder / "data") as address:
        begin = time.time()
        job = Scraped(folder / "s", task_data, small_backbone, temporary)
        try:
            job.wait_for(lambda: list((temporary / "ray").glob(PATTERN)), timeout=60)
            job.finish()
        except BaseException:
            if job.process.poll() is None:
                job.stop()
            raise
        yield address, begin, time.time()


def over_time(scraped, expression):
    """A query's series over the whole run."""
    address, begin, end = scraped
    query = filled_in(expression, seconds=end - begin, step=1.0, run="r")
    return ask(address, "query_range", query=query, start=begin, end=end, step=1)


def test_every_panel_has_data(scraped):
    covered, empty, excused = [], [], []
    for name in ("overview", "training", "merging"):
        for panel in BOARDS[name].panels:
            for expression, _ in panel.queries:
                where = f"{name}: {panel.title}: {expression}"
                if over_time(scraped, expression):
                    covered.append(where)
                elif panel.needs:
                    excused.append(f"{where} ({NOT_HERE[panel.needs]})")
                else:
                    empty.append(where)
    print(f"{len(covered)} queries have data, {len(excused)} cannot have it here", *excused, sep="\n")
    assert not empty, "\n".join(empty)
    assert len(covered) >= 50
    assert len(excused) <= 3


def test_every_metric_arrives_under_its_name(scraped):
    found = {
        series.labels["__name__"] for series in over_time(scraped, 'count by (__name__) ({__name__=~"ray_condu_.+"})')
    }
    wanted = {
        f"{metric.exported}_bucket" if metric.kind == "histogram" else metric.exported
        for metric in METRICS.values()
        if metric.name not in QUIET
    }
    assert wanted <= found
    known = {metric.exported for metric in METRICS.values()}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in found} <= known


@pytest.mark.parametrize("metric", [one for one in METRICS.values() if one.name not in QUIET], ids=lambda one: one.name)
def test_a_metric_has_its_tags(scraped, metric):
    name = f"{metric.exported}_count" if metric.kind == "histogram" else metric.exported
    series = over_time(scraped, f"count by ({', '.join(metric.tags)}, WorkerId) ({name})")
    assert series
    for one in series:
        assert set(one.labels) == {*metric.tags, "WorkerId"}
        assert one.labels["run"] == "r"


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        # three tasks: three experts from the start, two more of the chain
        ("max(ray_condu_experts_wanted)", 5),
        ("max(ray_condu_experts_done)", 5),
        ("sum(ray_condu_sessions_committed_total)", 3 * 3),
        ("sum(ray_condu_sessions_wanted)", 3 * 3),
        ("sum(ray_condu_sessions_measured_total)", 3 * 3),
        ("sum(ray_condu_merge_seconds_count)", 3 * 3),
        ('sum(ray_condu_cache_lookups_total{what="measurement"})', 3 * 3 * 3),
        ("count(ray_condu_accuracy_ratio)", 3 * 3),
    ],
)
def test_the_figures_are_the_runs(scraped, expression, value):
    series = over_time(scraped, expression)
    assert series
    assert max(number for one in series for number in one.values) == value


@pytest.mark.parametrize(
    ("expression", "most"),
    [
        ("sum(ray_condu_experts_trained_total)", 5),
        ("sum(ray_condu_training_steps_total)", 5 * 60),
        ("sum(ray_condu_training_images_total)", 5 * 60 * 8),
    ],
)
def test_workers_count_all_but_what_they_did_since_their_last_export(scraped, expression, most):
    counted = max(number for one in over_time(scraped, expression) for number in one.values)
    assert most / 2 <= counted <= most


def test_a_healthy_run_raises_no_alarm(scraped):
    firing = over_time(scraped, 'ALERTS{alertname=~"Condu(Stalled|Diverged|Faults|Merges.*)", alertstate="firing"}')
    assert [series.labels for series in firing] == []


def test_a_run_that_ended_leaves_no_target_behind(scraped, temporary):
    assert list((temporary / "ray").glob(PATTERN)) == []
