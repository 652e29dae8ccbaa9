"""Every option of the aggregated prediction, its speed and memory, for a finished run; takes a run's flags."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from condu_ray.commands.job import job
from condu_ray.commands.using import ablation_parser, of_a_run

if TYPE_CHECKING:
    from condu_ray.methods import Method


@job("the run is as it was; tables that were written stay, and the same command measures from the start")
def main(argv: Sequence[str] | None = None) -> None:
    """Trains nothing: the flags name a run in storage; bad input ends with its message and exit code 2."""
    parser = ablation_parser(__doc__)
    parser.add_argument(
        "--routing", metavar="SESSIONS", help="instead: routers, mixtures and novelty, after: all, last, or 3,6,9,11"
    )
    own, flags, config = of_a_run(parser, argv)
    from condu_ray.ablation.finished import finished_runs
    from condu_ray.ablation.inference import ablate_inference, prototype_kinds
    from condu_ray.ablation.merging import parse_sessions
    from condu_ray.ablation.routing import ablate_routing
    from condu_ray.learn.prototype_pass import prototypes_here
    from condu_ray.learn.prototype_store import load_prototypes
    from condu_ray.methods.merged import Unified
    from condu_ray.orchestration.cluster.failure import at_work
    from condu_ray.report.ablation_report import write_inference
    from condu_ray.report.routing_report import write_routing
    from condu_ray.store.layout import ablation_folder

    def suitable(method: Method) -> bool:
        if own.routing is not None:
            return method.routes or method.name == "individual"
        return isinstance(getattr(method, "rule", method), Unified)  # codes are no unified delta, whose bytes it counts

    which = "condu, condu-lora and emr"
    if own.routing is not None:
        which = "methods that have an expert a task, such as condu, condu-svd and individual"
    found = finished_runs(config, flags, suitable, which, sessions=True, keep_features=own.routing is not None)
    for run, evaluator in found:
        storage, features = run.config.storage, evaluator.features
        folder, name = ablation_folder(run.config.run_folder), run.method.name
        suffix = "" if name == "condu" else f"-{name}"
        sessions = [] if own.routing is None else parse_sessions(own.routing, len(run.tasks), "--routing")
        with at_work():
            made_of = run.config.inference
            if made_of.prototype_images == "training":  # the run has left those of all images that shots are drawn from
                prototypes_here(storage, features.backbone, run.tasks, features.device.type, print)
            if own.routing is not None:
                print(*write_routing(ablate_routing(run, evaluator, sessions), folder, f"routing{suffix}"), sep="\n")
                continue
            load = partial(
                load_prototypes, storage, features.backbone.fingerprint,
                images=made_of.prototype_images, text=made_of.prototype_text,
            )  # fmt: skip
            prototypes = {
                kind: {task.name: load(task=task, kind=kind) for task in run.tasks} for kind in prototype_kinds()
            }
            results = ablate_inference(run, evaluator, prototypes)
            print(*write_inference(results, folder, f"inference{suffix}"), sep="\n")
