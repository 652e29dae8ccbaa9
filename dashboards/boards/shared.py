"""Panels that more than one dashboard has."""

from functools import partial

from panels import BLUE, GREEN, RED, YELLOW, Panel
from queries import latest, now, quantile, rate, ray, total

STALL, SLOW = 900, 300
"""Seconds without progress: the alert's, and what is worth a look."""
LITTLE, SCARCE = 0.1, 0.25
"""Free share of storage: the alert's, and what is worth a look."""

ALERTS = 'sum(ALERTS{alertname=~"Condu.*", alertstate="firing"}) or vector(0)'

tile = partial(Panel, kind="stat", width=4, height=4)
"""A number in a square."""


def durations(title: str, description: str, metric: str) -> Panel:
    """Returns the median and the 95th percentile of a histogram of seconds, by method."""
    shares = {"median": 0.5, "95 %": 0.95}
    queries = [(quantile(share, metric, "method"), f"{{{{method}}}} {name}") for name, share in shares.items()]
    return Panel(title, description, queries, unit="s")


def counts(title: str, description: str, metric: str) -> Panel:
    """Returns a bar a method: what a counter has come to."""
    return Panel(title, description, [(total(metric, "method"), "{{method}}")], "bargauge", low=0)


SINCE_PROGRESS = tile(
    "Since last progress",
    "Seconds since the driver last saw a step, a merge or a measurement. Seconds are normal, a minute is a "
    "start-up or a large merge; from 15 minutes on the alert ConduStalled fires. After the end "
    "of a run it just grows.",
    [(f"time() - {latest('condu_last_progress_timestamp_seconds')}", "")],
    unit="s",
    steps=((None, GREEN), (SLOW, YELLOW), (STALL, RED)),
)
EXPERTS = tile(
    "Experts trained",
    "Experts that are in storage now, of those that were not when the run began.",
    [
        (latest("condu_experts_done", how="sum"), "trained"),
        (latest("condu_experts_wanted", how="sum"), "wanted"),
    ],
)
FAULTS = tile(
    "Faults",
    "Lanes, state actors and evaluators that died or failed and were started again. Spot nodes make some; on steady "
    "nodes look into Ray's logs for memory, and see the alert ConduFaults.",
    [
        (f"{total('condu_faults_total')} or vector(0)", "faults"),
        (f"{total('condu_diverged_total')} or vector(0)", "NaN"),
    ],
    steps=((None, GREEN), (1, YELLOW), (5, RED)),
)
STORAGE = tile(
    "Storage free",
    "Free share of the file system that holds experts, sessions and results. A run that finds it full fails, "
    "and goes on by the same command when there is room.",
    [(latest("condu_storage_free_ratio", how="min"), "")],
    unit="percentunit",
    steps=((None, RED), (LITTLE, YELLOW), (SCARCE, GREEN)),
)
LANES = tile(
    "Lanes open",
    "Lanes that are open now: experts that can be trained side by side. Each closes when nothing is left for it.",
    [(now("condu_lanes_active", how="sum"), "")],
    empty="none",
)
EVALUATORS_BUSY = Panel(
    "Evaluators at work",
    "Share of the evaluators' time that goes into measurements. Low while experts are trained is right; low while "
    "measurements wait is not: the alert ConduEvaluatorsIdle.",
    [
        (
            f"clamp_max({rate('condu_evaluator_busy_seconds_total', 'run')} "
            f"/ on (run) {now('condu_evaluators_active', 'run', how='sum')}, 1)",
            "{{run}}",
        )
    ],
    unit="percentunit",
    low=0,
    high=1,
)
WAITING = Panel(
    "Measurements waiting",
    "Measurements that are asked for and not there yet. It rises with every session and has to fall again before the "
    "run can end; a plateau means that evaluators are too few (--evaluation.evaluators).",
    [(now("condu_measurements_waiting", "run"), "{{run}}")],
)
CACHE = Panel(
    "Found instead of made",
    "Share of the wanted experts and measurements that were there already, made by another method, trial or run. The "
    "same command again has 100 %; several methods share their experts; a sweep over orders lives on it.",
    [
        (  # a counter that nothing was added to is not there, and without hits the share is 0
            f"({total('condu_cache_lookups_total', 'what', result='hit')} "
            f"or 0 * {total('condu_cache_lookups_total', 'what')}) "
            f"/ on (what) {total('condu_cache_lookups_total', 'what')}",
            "{{what}}",
        )
    ],
    "bargauge",
    "percentunit",
    low=0,
    high=1,
)
IMAGES = Panel(
    "Images per second",
    "Training throughput of each lane, over all its workers. It falls to nothing between experts; on a machine "
    "of its own it should not vary otherwise.",
    [(rate("condu_training_images_total", "run", "lane"), "{{run}} lane {{lane}}")],
    unit="suffix: images/s",
)
LOSS = Panel(
    "Loss",
    "Cross entropy of the latest step, by expert. It falls from about ln(classes) and, with label smoothing, "
    "stays well above 0. Where it rises instead, lower --training.lr_by_task for that task.",
    [(now("condu_training_loss", "method", "task"), "{{task}} ({{method}})")],
    unit="none",
)
DATA_WAIT = Panel(
    "Waiting for data",
    "Share of an expert's time in which its trainer waited for images. Below 5 % is good; above 30 % the alert "
    "ConduDataStarved fires: more --cluster.decoders, or faster storage.",
    [(now("condu_data_wait_ratio", "run", "lane"), "{{run}} lane {{lane}}")],
    unit="percentunit",
    steps=((None, GREEN), (0.3, RED)),
    low=0,
    high=1,
)
ACCURACY = Panel(
    "Accuracy",
    "Mean over all tasks, learned or not, after the latest measured session. A method that forgets falls; one that "
    "keeps rises as tasks are learned. The matrix by task is on the dashboard Merging.",
    [(latest("condu_accuracy_ratio", "method", "space", how="avg"), "{{method}}, protocol {{space}}")],
    unit="percentunit",
    high=1,
)
QUEUE = Panel(
    "Experts waiting for their merge",
    "Experts in storage whose turn it is. 0 or 1 is normal; when it grows, merges are slower than training: "
    "the alert ConduMergesBehind.",
    [(now("condu_merge_queue_experts", "run", "method"), "{{method}}")],
)
CPU = Panel(
    "CPU",
    "Share of each node's processors in use, by Ray's own agents.",
    [(f"{ray('ray_node_cpu_utilization', 'instance', how='avg')} / 100", "{{instance}}")],
    unit="percentunit",
    low=0,
    high=1,
)
MEMORY = Panel(
    "Memory",
    "Share of each node's memory in use. Above 92 % the alert ConduNodeMemory fires: Ray kills workers at 95 %.",
    [
        (
            f"{ray('ray_node_mem_used', 'instance', how='max')} / {ray('ray_node_mem_total', 'instance', how='max')}",
            "{{instance}}",
        )
    ],
    unit="percentunit",
    steps=((None, BLUE), (0.92, RED)),
    low=0,
    high=1,
)
