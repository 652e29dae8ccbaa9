"""For whoever runs a sweep: how far, what is shared, how the methods stand."""

from panels import Board, Panel
from queries import latest, quantile, rate

from boards.shared import (
    CACHE,
    CPU,
    DATA_WAIT,
    EVALUATORS_BUSY,
    EXPERTS,
    FAULTS,
    IMAGES,
    LANES,
    MEMORY,
    SINCE_PROGRESS,
    STORAGE,
    WAITING,
    counts,
)

SWEEP = Board(
    "condu-sweep",
    "condu_ray: sweep",
    "Many orders, methods and seeds: trials on Ray Tune over shared lanes and evaluators. "
    "Choose the sweep's name as run.",
    [
        ("Now", [SINCE_PROGRESS, EXPERTS, LANES, FAULTS, STORAGE]),
        (
            "Trials",
            [
                Panel(
                    "Finished",
                    "Share of the trials that are finished, those of earlier calls of the same command among them.",
                    [
                        (
                            f"{latest('condu_trials', state='finished', how='sum')} "
                            f"/ {latest('condu_trials', how='sum')}",
                            "",
                        )
                    ],
                    "stat",
                    "percentunit",
                    width=4,
                    needs="sweep",
                ),
                Panel(
                    "Trials",
                    "Trials that are finished, and that are left. Most finish late: a trial waits for the "
                    "experts that it shares with others.",
                    [(latest("condu_trials", "state"), "{{state}}")],
                    width=12,
                    needs="sweep",
                ),
                Panel(
                    "Time of a trial",
                    "Median over all trials so far. Early ones wait for training; late ones only merge and measure.",
                    [(quantile(0.5, "condu_trial_seconds", "method"), "{{method}}")],
                    unit="s",
                    needs="sweep",
                ),
            ],
        ),
        (
            "What is shared",
            [
                CACHE,
                counts(
                    "Merges",
                    "Sessions that all trials together have committed, by method.",
                    "condu_sessions_committed_total",
                ),
                Panel(
                    "Merges per minute",
                    "How fast the trials get on. Merging is all that they do themselves.",
                    [(f"60 * {rate('condu_sessions_committed_total', 'method')}", "{{method}}")],
                    unit="suffix: merges/min",
                ),
            ],
        ),
        (
            "How the methods stand",
            [
                Panel(
                    "Accuracy over trials",
                    "Mean over all tasks, and over all trials that were seen in the time shown, each after its "
                    "latest measured session. The report has the figures with their spread over orders.",
                    [
                        (
                            latest("condu_accuracy_ratio", "method", space="task", how="avg"),
                            "{{method}}",
                        )
                    ],
                    unit="percentunit",
                    high=1,
                    width=12,
                ),
                Panel(
                    "Reconstruction error over trials",
                    "Mean over learned tasks and trials of what merging loses of an expert; 0 is a perfect copy.",
                    [(latest("condu_reconstruction_error_ratio", "method", how="avg"), "{{method}}")],
                    unit="percentunit",
                    width=12,
                ),
            ],
        ),
        ("Lanes and evaluators", [IMAGES, DATA_WAIT, EVALUATORS_BUSY, WAITING, CPU, MEMORY]),
    ],
)
