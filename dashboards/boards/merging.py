"""For whoever looks at the method: merges, what they keep and lose, and what the sessions measure."""

from panels import GREEN, RED, YELLOW, Board, Panel
from queries import latest

from boards.shared import ACCURACY, CACHE, EVALUATORS_BUSY, QUEUE, STORAGE, WAITING, counts, durations

GRADES = ((None, RED), (0.4, YELLOW), (0.7, GREEN))

MERGING = Board(
    "condu-merging",
    "condu_ray: merging",
    "Sessions: merging by the state actor, and their measurement by the evaluators.",
    [
        (
            "Sessions",
            [
                counts(
                    "Committed",
                    "Sessions that each method has committed in this run.",
                    "condu_sessions_committed_total",
                ),
                QUEUE,
                durations(
                    "Time of a merge",
                    "Median and 95th percentile over all merges so far, with loading the expert and committing "
                    "the session. It grows with the model, and with the number of tasks.",
                    "condu_merge_seconds",
                ),
            ],
        ),
        (
            "What is kept",
            [
                Panel(
                    "Size of the model",
                    "Bytes on disk of the latest session: for ConDU the unified delta and a bit a parameter "
                    "and task, so it grows by a 32nd of the model a task.",
                    [(latest("condu_unified_model_bytes", "method"), "{{method}}")],
                    unit="bytes",
                ),
                Panel(
                    "Reconstruction error",
                    "How far what serves a task is from the task's own expert, relative to it; 0 is a perfect "
                    "copy. It rises as tasks are added, and how steeply is what tells methods apart.",
                    [(latest("condu_reconstruction_error_ratio", "method", "task"), "{{task}} ({{method}})")],
                    unit="percentunit",
                    width=16,
                ),
            ],
        ),
        (
            "What it is worth",
            [
                Panel(
                    "Accuracy by task",
                    "Accuracy after the latest measured session, a row a method, over the task's own classes. "
                    "Columns of tasks not yet learned show what is left of zero-shot transfer. Of several runs, or a "
                    "sweep, it is the mean.",
                    [
                        (
                            latest("condu_accuracy_ratio", "method", "task", space="task", how="avg"),
                            "{{method}} {{task}}",
                        )
                    ],
                    "table",
                    "percentunit",
                    GRADES,
                    width=16,
                    matrix=("method", "task"),
                ),
                ACCURACY,
            ],
        ),
        (
            "Measuring",
            [
                EVALUATORS_BUSY,
                WAITING,
                durations(
                    "Time of a measurement",
                    "Median and 95th percentile over all measurements so far: one state on one task's test "
                    "images. Routed ones (tasks not known) take as many passes as experts are asked.",
                    "condu_measurement_seconds",
                ),
                CACHE,
                Panel(
                    "Storage free, in bytes",
                    "Free bytes where the run's storage is: an expert and a session take about the model's size each.",
                    [(latest("condu_storage_free_bytes", "run", how="min"), "{{run}}")],
                    unit="bytes",
                    low=0,
                ),
                STORAGE,
            ],
        ),
    ],
)
