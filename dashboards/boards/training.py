"""For whoever tunes the training: loss, throughput, data, lanes, GPUs, and what Ray Train itself says."""

from panels import Board, Panel
from queries import now, rate, ray

from boards.shared import DATA_WAIT, EXPERTS, FAULTS, IMAGES, LANES, LOSS, MEMORY, SINCE_PROGRESS, counts, durations

TRAINING = Board(
    "condu-training",
    "condu_ray: training",
    "Fine-tuning of experts in lanes on Ray Train.",
    [
        ("Now", [SINCE_PROGRESS, LANES, EXPERTS, FAULTS]),
        (
            "Experts",
            [
                LOSS,
                IMAGES,
                DATA_WAIT,
                Panel(
                    "Steps per second",
                    "Optimizer steps of each lane. With images per second it says whether a step is slow or "
                    "its batch large.",
                    [(rate("condu_training_steps_total", "run", "lane"), "{{run}} lane {{lane}}")],
                    unit="suffix: steps/s",
                ),
                counts(
                    "Experts by method",
                    "Experts trained so far. Methods that start from the pretrained weights share theirs: such "
                    "an expert is counted for the method that asked first.",
                    "condu_experts_trained_total",
                ),
                durations(
                    "Time of an expert",
                    "Median and 95th percentile over all experts so far, from start to publication. In a chain "
                    "(sequential methods) it holds the waiting for the expert before.",
                    "condu_expert_seconds",
                ),
            ],
        ),
        (
            "Lanes, as Ray Train sees them",
            [
                Panel(
                    "Lane state",
                    "Ray Train's controller of each lane: RUNNING is work, RESTARTING or RESCHEDULING after a fault, "
                    "SCHEDULING for long means that a node or GPU is missing.",
                    [
                        (
                            ray(
                                "ray_train_controller_state",
                                "ray_train_run_name",
                                "ray_train_controller_state",
                                how="max",
                                window="1h",
                            )
                            + " == 1",
                            "{{ray_train_run_name}} {{ray_train_controller_state}}",
                        )
                    ],
                    "state-timeline",
                ),
                Panel(
                    "Start of workers",
                    "Seconds that each lane has spent on starting its workers; a step up for every restart. "
                    "Over 30 s a start: bytecode is missing in the image, or the file system is slow.",
                    [
                        (
                            ray(
                                "ray_train_worker_group_start_total_time_s",
                                "ray_train_run_name",
                                how="max",
                                window="1h",
                            ),
                            "{{ray_train_run_name}}",
                        )
                    ],
                    unit="s",
                ),
                Panel(
                    "Blocked in ray.train.report",
                    "Seconds that workers waited in ray.train.report. Ours publish to storage and never call it, so "
                    "nothing, or a line at 0, is right; anything else is another program's.",
                    [
                        (
                            ray(
                                "ray_train_report_total_blocked_time_s",
                                "ray_train_run_name",
                                how="max",
                                window="1h",
                            ),
                            "{{ray_train_run_name}}",
                        )
                    ],
                    unit="s",
                    needs="report",
                ),
            ],
        ),
        (
            "Machines",
            [
                Panel(
                    "GPU memory reserved",
                    "What PyTorch has reserved in each training worker, as it trains. Near the card's size: a "
                    "smaller --training.batch_size.",
                    [(now("condu_gpu_memory_bytes", "run", "lane", "rank"), "{{run}} lane {{lane}} rank {{rank}}")],
                    unit="bytes",
                    needs="gpu",
                ),
                Panel(
                    "GPU in use",
                    "Share of the time that each GPU computed. Below 5 % for long while lanes are open: the alert "
                    "ConduGpuIdle.",
                    [
                        (
                            ray("ray_node_gpus_utilization", "instance", "GpuIndex", how="max") + " / 100",
                            "{{instance}} GPU {{GpuIndex}}",
                        )
                    ],
                    unit="percentunit",
                    low=0,
                    high=1,
                    needs="gpu",
                ),
                MEMORY,
                Panel(
                    "Object store",
                    "Bytes that Ray holds between its processes: the decoded images on their way to the "
                    "trainers. A store that spills to disk slows the data down.",
                    [(ray("ray_object_store_memory", "Location"), "{{Location}}")],
                    unit="bytes",
                ),
            ],
        ),
    ],
)
