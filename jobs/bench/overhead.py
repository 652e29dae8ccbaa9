"""Orchestration overhead: the main job's wall time against a plain single-process loop over the same work.

`python jobs/bench/overhead.py` runs both from process start to end, each in empty storage, in turn, then the main job's
command once more, which finds all of it in storage; it prints medians with CPU seconds and processes, and the ratio of
the first two. The plain loop is what a script without Ray would be: every expert, merge, prototype and measurement of
the four methods one after the other, with all cores as torch threads; it draws, checks and reports nothing.
"""

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from jobs.bench.processes import Cost, cost

METHODS = ("condu", "sequential", "individual", "zero-shot")


def plain(data: str, steps: int) -> None:
    """The plain loop; prints Last of each method."""
    import torch

    from condu_ray.benchmark import load_tasks
    from condu_ray.benchmark.mini_mtil.draw import MINI_MTIL_DEFAULT
    from condu_ray.learn.chunks import ChunkReader, batches, training_chunks
    from condu_ray.learn.evaluate import Evaluator
    from condu_ray.learn.features import Weights
    from condu_ray.learn.lesson import Lesson
    from condu_ray.learn.loop import fine_tune
    from condu_ray.learn.objective import ClipClassifier, Objective
    from condu_ray.learn.precision import resolved_precision
    from condu_ray.merging import UnifiedDelta, subtract
    from condu_ray.options import Inference
    from condu_ray.recipes import mini_mtil
    from condu_ray.vlm.inputs import normalise
    from condu_ray.vlm.model import backbone_spec, load_backbone, set_weights
    from condu_ray.vlm.preprocess import Preprocessor
    from condu_ray.vlm.prototypes import class_prototypes
    from condu_ray.vlm.zeroshot import image_features, text_features

    tasks, settings = load_tasks(data, MINI_MTIL_DEFAULT), mini_mtil().training.model_copy(update={"steps": steps})
    spec, precision = backbone_spec(), resolved_precision("auto", False)
    trained, measured = load_backbone(spec), load_backbone(spec)
    theta0, reader = trained.snapshot(), ChunkReader(spec.preprocess, augment=True)
    evaluator = Evaluator(measured, batch_size=250, precision=precision)

    def expert(task, start=None):  # type: ignore[no-untyped-def]
        set_weights(trained, theta0, start)
        chunks = training_chunks(str(task.train), seed=0, steps=steps, batch_size=settings.batch_size)
        lesson = Lesson(
            task=task,
            position=0,
            backbone=trained,
            theta0=theta0,
            parameters=trained.trainable,
            settings=settings,
            config=mini_mtil(),
            precision=precision,
            seed=0,
        )
        stream = batches(reader, chunks, settings.batch_size)
        fine_tune(ClipClassifier(trained.model), stream, Objective(lesson))
        return subtract(trained.snapshot(), theta0)

    prototypes, preprocessor = {}, Preprocessor(spec.preprocess)
    for task in tasks:
        import pyarrow.parquet as pq

        table = pq.read_table(task.train)
        labels, sums = (
            torch.tensor(table["label"].to_pylist()),
            torch.zeros(len(task.classes), 128, dtype=torch.float64),
        )
        for start in range(0, len(labels), 64):
            encoded = table["image"].slice(start, 64)
            pixels = torch.stack([torch.from_numpy(preprocessor.pixels(image.as_py()).copy()) for image in encoded])
            features = image_features(measured.model, normalise(pixels, spec.preprocess)).double()
            sums.index_add_(0, labels[start : start + 64], features)
        text = text_features(measured.model, measured.tokenizer, task.classes, task.templates)
        counts = torch.bincount(labels, minlength=len(task.classes))
        prototypes[task.name] = class_prototypes(sums, counts, text)

    def known(task, name, delta):  # type: ignore[no-untyped-def]
        return evaluator.known(task, Weights(name, lambda: delta)).correct / task.test_rows

    unified, latest = UnifiedDelta.empty(), None
    experts: dict[str, dict[str, torch.Tensor]] = {}
    own: dict[str, float] = {}
    zero = {task.name: known(task, "theta0", None) for task in tasks}
    for session, task in enumerate(tasks):
        experts[task.name] = expert(task)
        latest = expert(task, latest) if session else experts[task.name]
        unified = unified.unify(task.name, experts[task.name])
        own[task.name] = known(task, f"expert/{task.name}", experts[task.name])
        last = {"individual": sum(own.values()), "sequential": 0.0, "condu": 0.0}
        for other in tasks:
            last["sequential"] += known(other, f"latest/{session}", latest)
            if other.name in unified.tasks:
                last["condu"] += known(other, f"condu/{session}/{other.name}", unified.decouple(other.name))
            else:
                candidates = {
                    name: Weights(f"condu/{session}/{name}", partial(unified.decouple, name)) for name in unified.tasks
                }
                near = {name: prototypes[name] for name in unified.tasks}
                evaluator.aggregated(other, candidates, near, Inference())
    last["zero-shot"] = sum(zero.values())
    print("plain loop, Last:", {name: round(100 * value / len(tasks), 1) for name, value in last.items()})


def main() -> None:
    """Runs both in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=0, help="training steps a task; 0: the recipe's")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--plain", metavar="DATA", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    from condu_ray.recipes import mini_mtil as recipe

    steps = arguments.steps or recipe().training.steps
    if arguments.plain:
        plain(arguments.plain, steps)
        return
    from condu_ray.benchmark.mini_mtil.draw import mini_mtil

    job = Path(__file__).parents[1] / "run_mtil.py"
    ours: list[list[Cost]] = [[], [], []]
    with tempfile.TemporaryDirectory() as folder:
        mini_mtil(Path(folder) / "data")
        for number in range(arguments.repeats):
            flags = ["--method", ",".join(METHODS), "--storage", f"{folder}/{number}", "--training.steps", str(steps)]
            ours[0].append(cost([sys.executable, str(job), *flags]))
            loop = [sys.executable, __file__, "--plain", f"{folder}/data", "--steps", str(steps)]
            ours[1].append(cost(loop, show=True))
            ours[2].append(cost([sys.executable, str(job), *flags]))
    with_ray, without, again = (sorted(costs, key=lambda one: one.wall)[len(costs) // 2] for costs in ours)
    ratios = f"{with_ray.wall / without.wall:.2f} by the clock, {with_ray.cpu / without.cpu:.2f} by CPU seconds"
    print(f"main job {with_ray}, plain loop {without}: ratio {ratios} ({steps} steps a task)")
    print(f"the same command again {again}")


if __name__ == "__main__":
    main()
