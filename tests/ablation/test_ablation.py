"""Ablations of a stored run: options against the evaluator, variants against the merges, bytes, refusals, the jobs."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from condu_ray.ablation import inference as inference
from condu_ray.ablation import routing as routing
from condu_ray.ablation import routing_numbers
from condu_ray.ablation.cost import Footprint, aggregation_cost
from condu_ray.ablation.finished import keep_methods, make_evaluator
from condu_ray.ablation.merging import (
    _own,
    ablate_merging,
    measure_bounds,
    measure_variants,
    parse_sessions,
    summarise,
)
from condu_ray.ablation.synthetic import ablate_synthetic, measure_synthetic, shared_gaussian
from condu_ray.benchmark import load_tasks
from condu_ray.config import Evaluation, Experiment
from condu_ray.learn import prototype_store as prototype_store
from condu_ray.learn.features import PRETRAINED, Weights
from condu_ray.learn.routing import load_routing
from condu_ray.merging import UnifiedDelta, reconstruction
from condu_ray.merging.variants import variants
from condu_ray.methods import ModelState, get
from condu_ray.methods.session import save_session, session_folder
from condu_ray.options import Inference, Merging
from condu_ray.plan.sessions import plan_method
from condu_ray.plan.stored_method import MissingRunError, StoredMethod
from condu_ray.report.ablation_report import write_inference, write_merging, write_synthetic
from condu_ray.store import artifacts
from condu_ray.store.experts import expert_folder, save_expert
from condu_ray.store.layout import ledger_path
from condu_ray.store.ledger import Entry, Ledger
from condu_ray.vlm import moments as moments_module
from condu_ray.vlm.model import backbone_spec, load_backbone

JOBS = Path(__file__).parents[2] / "jobs"
TASKS = ("walls", "doors", "cars")
OPTIONS = inference.all_options()


def noise(theta0, seed, scale=0.2):
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(tensor.shape, generator=generator) for name, tensor in theta0.items()}


def unit_rows(count, seed):
    rows = torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=-1)


class Stored:
    """A run's experts and sessions in a storage folder, made by hand."""

    def __init__(self, storage, data, backbone, method="condu"):
        self.flags = ["--data", str(data), "--pretrained", str(backbone), "--storage", str(storage), "--run", "r"]
        self.config = Experiment(
            method=(method,), data=data, pretrained=str(backbone), storage=storage, run="r", recipe="own_data",
            evaluation=Evaluation(batch_size=7),
        )  # fmt: skip
        self.spec, self.tasks = backbone_spec(pretrained=str(backbone)), tuple(load_tasks(data))
        loaded = load_backbone(self.spec)
        self.fingerprint, self.theta0 = loaded.fingerprint, loaded.snapshot()
        self.method = get(method, self.config)
        self.plan = plan_method(self.method, self.config, self.tasks, self.fingerprint, "fp32")
        self.deltas = {task.name: noise(self.theta0, seed) for seed, task in enumerate(self.tasks)}

    def save(self):
        for expert in self.plan.experts:
            save_expert(self.config.storage, expert.key, self.deltas[expert.task], {"task": expert.task})
        state = ModelState(model=self.method.initial())
        keys = {expert.key: expert.task for expert in self.plan.experts}
        for session in self.plan.sessions:
            model = self.method.merge(state, session.task, session.expert.key, lambda key: self.deltas[keys[key]])
            state = state.after(session.state, session.task, session.expert.key, model)
            entry = Entry(session.position, session.task, session.expert.key, session.parent, session.state, 0.0)
            save_session(self.config.run_folder, self.method, entry, state)
            Ledger(ledger_path(self.config.run_folder, self.method.name)).append(entry)
        return self

    def run(self, sessions=True):
        found = StoredMethod(self.config, self.tasks, self.plan)
        found.require(self.flags, sessions=sessions)
        return found

    def evaluator(self):
        return make_evaluator(self.config, self.spec, "fp32")


@pytest.fixture(scope="module")
def stored(tmp_path_factory, task_data, small_backbone):
    return Stored(tmp_path_factory.mktemp("storage"), task_data, small_backbone).save()


@pytest.fixture
def empty(tmp_path, task_data, small_backbone):
    return Stored(tmp_path / "s", task_data, small_backbone)


@pytest.fixture(scope="module")
def prototypes(stored):
    return {
        kind: {task.name: unit_rows(len(task.classes), 10 * row + column) for column, task in enumerate(stored.tasks)}
        for row, kind in enumerate(inference.prototype_kinds())
    }


class TestOptions:
    def test_there_are_all(self):
        assert len(OPTIONS) == len(set(OPTIONS)) == 2 * 5 * 2 * 3
        assert {inference.PAPER, inference.PUBLIC_CODE, inference.of_config(Inference())} <= set(OPTIONS)

    @pytest.mark.parametrize(
        "changes",
        [
            {"aggregation": "mixture"},
            {"aggregation": "weighted", "router": "gaussian"},
            {"aggregation": "mean", "router": "ridge"},
            {"pretrained_weight": "equal"},
        ],
    )
    def test_what_a_run_does_otherwise_is_none_of_them(self, changes):
        assert inference.of_config(Inference(**changes)) is None

    def test_what_changes_nothing_is_left_to_a_run(self):
        assert inference.of_config(Inference(pretrained_weight="equal", aggregation="mean")) == inference.PUBLIC_CODE
        assert inference.of_config(Inference(pretrained_weight="equal", include_pretrained=False)) == inference.PAPER

    @pytest.mark.parametrize(
        ("option", "row"),
        [
            (("mean", 1, True, "both"), [1, 0, 0, 0]),
            (("mean", 1, False, "both"), [0, 0, 1, 0]),
            (("mean", 3, True, "both"), [1 / 3, 1 / 3, 1 / 3, 0]),
            (("mean", None, True, "both"), [1 / 4, 1 / 4, 1 / 4, 1 / 4]),
            (("mean", 5, False, "both"), [0, 1 / 3, 1 / 3, 1 / 3]),
            (("weighted", 2, False, "both"), [0, 0.3 / 0.9, 0.6 / 0.9, 0]),
            (("weighted", 2, True, "both"), [1 / 2, 0, 1 / 2, 0]),
            (("weighted", None, True, "both"), [0.6 / 1.6, 0.3 / 1.6, 0.6 / 1.6, 0.1 / 1.6]),
        ],
    )
    def test_weights_by_hand(self, option, row):
        found = inference.Option(*option).weights(torch.tensor([[0.3, 0.6, 0.1]]))
        assert found[0].tolist() == pytest.approx(row)

    def test_options_count_as_the_evaluator_does(self, stored, prototypes):
        run, evaluator = stored.run(), stored.evaluator()
        chosen = OPTIONS[::4]  # every kind of every field, in other combinations
        rows = inference.measure_options(run, evaluator, prototypes, chosen)
        fresh, different = stored.evaluator(), set()
        for option, row in zip(chosen, rows, strict=True):
            assert {key: row[key] for key in ("aggregation", "top_k", "include_pretrained", "prototypes")} == vars(
                option
            )
            settings = Inference(
                aggregation=option.aggregation,
                top_k=option.top_k or 99,
                include_pretrained=option.include_pretrained,
                prototypes=option.prototypes,
            )
            for position in (0, 2):
                state = run.state(position)
                experts = {name: run.weights(state, name) for name in state.tasks}
                known = {name: prototypes[option.prototypes][name] for name in state.tasks}
                for column, task in enumerate(stored.tasks):
                    union = fresh.aggregated(task, experts, known, settings, stored.tasks)
                    within = fresh.known(task, experts[task.name]) if column <= position else None
                    within = within or fresh.aggregated(task, experts, known, settings)
                    assert row["union"]["accuracy"][position][column] == 100 * union.correct / union.images
                    assert row["accuracy"][position][column] == 100 * within.correct / within.images
            different.add(json.dumps(row["union"]["accuracy"]))
        assert len(different) > 5  # the options are told apart at all

    def test_the_first_session_is_predicted_as_the_run_has_it(self, stored, prototypes, monkeypatch):
        config = stored.config.model_copy(
            update={"evaluation": Evaluation(first_session="pretrained"), "inference": Inference(top_k=2)}
        )
        plan = replace(stored.plan, method=get("condu", config))
        monkeypatch.setattr(inference, "aggregation_cost", lambda *given: [])
        run = StoredMethod(config, stored.tasks, plan)
        found = inference.ablate_inference(run, stored.evaluator(), prototypes)
        evaluator, first = stored.evaluator(), stored.tasks[0]
        state = run.state(1)
        for row in found["options"]:
            assert row["accuracy"][0][0] == evaluator.known(first, PRETRAINED).percent
            assert row["accuracy"][1][0] == evaluator.known(first, run.weights(state, first.name)).percent

    @pytest.mark.usefixtures("undrawn")
    def test_a_runs_own_option_is_measured_whatever_its_k(self, stored, prototypes, tmp_path):
        config = stored.config.model_copy(update={"inference": Inference(top_k=4)})
        run = StoredMethod(config, stored.tasks, replace(stored.plan, method=get("condu", config)))
        found = inference.ablate_inference(run, stored.evaluator(), prototypes)
        assert len(found["options"]) == len(OPTIONS) + 1
        write_inference(found, tmp_path)
        assert "| this run | weighted | 4 | yes | both |" in (tmp_path / "inference.md").read_text()

    def test_metrics_are_those_of_the_matrix(self, stored, prototypes):
        (row,) = inference.measure_options(stored.run(), stored.evaluator(), prototypes, [inference.PAPER])
        a = row["accuracy"]
        assert row["transfer"] == pytest.approx((a[0][1] + (a[0][2] + a[1][2]) / 2) / 2)
        assert row["union"]["last"] == pytest.approx(sum(row["union"]["accuracy"][2]) / 3)

    def test_chunks_of_images_do_not_count(self, stored, prototypes, monkeypatch):
        def measure():
            return inference.measure_options(stored.run(), stored.evaluator(), prototypes, OPTIONS[::7])

        whole = measure()
        monkeypatch.setattr(inference, "_LOGITS", 300)
        assert measure() == whole


class TestCost:
    @pytest.mark.parametrize("tasks", [1, 2, 9, 17])
    def test_the_formula_is_what_a_unified_delta_has(self, tasks):
        shapes = {"odd": (13,), "one": (1,), "scalar": (), "matrix": (3, 5), "nothing": (0, 2)}
        state = UnifiedDelta.empty()
        for task in range(tasks):
            state = state.unify(str(task), {name: torch.randn(shape) for name, shape in shapes.items()})
        found = Footprint.of(state.unified, torch.nn.Linear(3, 2))
        assert found.unified(tasks) == state.nbytes
        assert found.delta == 4 * (13 + 1 + 1 + 15)
        assert found.trigger == 2 + 1 + 1 + 2 + 16
        assert found.model == 4 * 8

    def test_table_and_held_by_hand(self):
        found = Footprint(delta=320, trigger=26, model=400)
        assert found.table([1, 10]) == [
            {"tasks": 1, "unified": 346, "experts": 320, "share": 346 / 320},
            {"tasks": 10, "unified": 580, "experts": 3200, "share": 580 / 3200},
        ]
        assert found.held(3) == (320 + 3 * 26 + 400, 1200)

    def test_more_experts_take_longer_and_the_evaluator_stays_as_it_was(self, stored, prototypes):
        run, evaluator, task = stored.run(), stored.evaluator(), stored.tasks[0]
        state = run.state(2)
        before = evaluator.known(task, PRETRAINED).correct
        experts = [run.weights(state, name) for name in state.tasks]
        found = aggregation_cost(evaluator, task, experts, list(prototypes["both"].values()), repeats=2)
        assert [row["experts"] for row in found] == [1, 2, 3]
        assert {row["batch"] for row in found} == {7}
        for key in ("swapped", "held"):
            speeds = [row[key] for row in found]
            assert speeds == sorted(speeds, reverse=True)
            assert speeds[-1] > 0
        evaluator.features._kept.clear()  # its weights are to be theta0's still
        assert evaluator.known(task, PRETRAINED).correct == before


class TestVariants:
    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("all", [1, 2, 3, 4, 5, 6]), ("last", [6]), ("doubling", [1, 2, 4, 6]), ("4, 2,2", [2, 4]),
            ("1,last", [1, 6]),
        ],
    )  # fmt: skip
    def test_sessions(self, text, found):
        assert parse_sessions(text, 6) == found

    @pytest.mark.parametrize("text", ["0", "7", "", "1,,2", "-1", "first", "²"])
    def test_sessions_that_are_not(self, text):
        with pytest.raises(ValueError, match="--sessions"):
            parse_sessions(text, 6)

    def test_rows_are_the_merges(self, stored):
        run, evaluator = stored.run(sessions=False), stored.evaluator()
        bounds = measure_bounds(run, evaluator)
        chosen = {name: variants()[name] for name in ("condu", "average", "no-mask")}
        rows = measure_variants(
            run.deltas,
            chosen,
            evaluator=evaluator,
            tasks=stored.tasks,
            bounds=bounds,
            sessions=[1, 3],
        )
        assert [(row["variant"], row["session"], row["task"]) for row in rows] == [
            (name, session, task) for session in (1, 2, 3) for name in chosen for task in TASKS[:session]
        ]
        kept, fresh = None, stored.evaluator()
        for session in (1, 2, 3):
            kept = variants()["no-mask"].merge(kept, dict(list(stored.deltas.items())[:session]))
        for position, task in enumerate(TASKS):
            served = kept.decouple(task)
            row = next(row for row in rows if (row["variant"], row["session"], row["task"]) == ("no-mask", 3, task))
            expected = reconstruction(stored.deltas[task], served)
            assert row["relative_l2"] == pytest.approx(expected.relative_l2, rel=1e-9)  # tensors come in another order
            assert row["cosine"] == pytest.approx(expected.cosine, rel=1e-9)
            assert row["rescaler"] == kept.rescalers[task]
            count = fresh.known(stored.tasks[position], Weights(task, lambda served=served: served))
            accuracy = 100 * count.correct / count.images
            assert row["accuracy"] == accuracy
            assert row["over_individual"] == accuracy - bounds[task]["individual"]
        for row in rows:
            assert ("accuracy" in row) == (row["session"] in (1, 3))
            assert (row["rescaler"] is None) == (row["variant"] == "average")
            if row["session"] == 1:  # one task alone is served its own expert
                assert row["accuracy"] == bounds[row["task"]]["individual"]
            gain = bounds[row["task"]]["individual"] - bounds[row["task"]]["zero_shot"]
            if row.get("kept") is not None:
                assert row["kept"] * gain == pytest.approx(row["accuracy"] - bounds[row["task"]]["zero_shot"])
            elif "accuracy" in row:
                assert gain <= 0

    def test_bounds_are_theta0_and_the_own_expert(self, stored):
        bounds, evaluator = measure_bounds(stored.run(), stored.evaluator()), stored.evaluator()
        for task in stored.tasks:
            own = evaluator.known(task, Weights("own", lambda name=task.name: stored.deltas[name]))
            zero = evaluator.known(task, PRETRAINED)
            assert bounds[task.name] == {
                "zero_shot": 100 * zero.correct / zero.images, "individual": 100 * own.correct / own.images
            }  # fmt: skip
            evaluator = stored.evaluator()

    def test_summary_by_hand(self):
        base = {"variant": "v", "session": 2, "sign_agreement": 1.0, "cosine": 0.5}
        rows = [
            base | {"task": "a", "relative_l2": 0.2, "accuracy": 60.0, "over_individual": -20.0, "kept": 0.5},
            base | {"task": "b", "relative_l2": 0.4, "accuracy": 30.0, "over_individual": -1.0, "kept": None},
            base | {"task": "b", "session": 3, "relative_l2": 0.6},
        ]
        bounds = {"a": {"zero_shot": 40.0, "individual": 80.0}, "b": {"zero_shot": 35.0, "individual": 31.0}}
        found = summarise(rows, bounds)
        assert found[0] == {
            "variant": "v", "session": 2, "tasks": 2, "relative_l2": pytest.approx(0.3), "sign_agreement": 1.0,
            "cosine": 0.5, "accuracy": 45.0, "over_individual": -10.5, "kept": pytest.approx((20 - 5) / (40 - 4)),
        }  # fmt: skip
        assert found[1]["accuracy"] is None
        assert "kept" not in found[1]
        assert summarise(rows[1:2], bounds)[0]["kept"] is None  # fine-tuning gained nothing

    @pytest.mark.usefixtures("undrawn")
    def test_whole_ablation_has_the_runs_options_its_own_rows_and_its_bytes(self, stored, tmp_path):
        options = Merging(arithmetic_scale=0.7, ties_density=0.5, magmax_scale=0.9, rescaler="tensor_mean")
        config = stored.config.model_copy(update={"merging": options, "method": ("condu", "ties", "individual")})
        results = ablate_merging(StoredMethod(config, stored.tasks, stored.plan), stored.evaluator(), [3])
        assert "0.7 times" in results["variants"]["task-arithmetic"]["formula"]
        assert "50 %" in results["variants"]["ties"]["formula"]
        assert "0.9 times" in results["variants"]["magmax"]["formula"]
        assert results["measured"]["counted"] == results["measured"]["stored"] > 0
        assert len(results["summary"]) == 3 * len(results["variants"]) == 30
        assert [name for name, variant in results["variants"].items() if variant["own"]] == ["condu", "ties"]
        assert (tmp_path / "merging.md") in write_merging(results, tmp_path)
        assert (tmp_path / "merging.md").read_text().count("| this run |") == 2
        state = UnifiedDelta.empty()
        for task, delta in stored.deltas.items():
            state = state.unify(task, delta, rescaler="tensor_mean")
        rows = {row["task"]: row for row in results["rows"] if (row["variant"], row["session"]) == ("condu", 3)}
        assert {task: row["rescaler"] for task, row in rows.items()} == dict(state.rescalers)

    @pytest.mark.parametrize(
        ("method", "changes", "own"),
        [
            ("condu,ties,individual", {}, ["condu", "ties"]),
            ("condu-lora", {"lora": {"merge": "factors"}}, []),
            ("emr,condu-lora", {}, ["emr"]),
            ("condu-lora,condu-sign-lora", {}, ["condu"]),
            ("individual", {}, []),
        ],
    )
    def test_rows_that_the_run_is_are_known(self, stored, method, changes, own):
        config = Experiment.model_validate(stored.config.model_dump() | {"method": method.split(",")} | changes)
        plan = plan_method(get(config.method[0], config), config, stored.tasks, stored.fingerprint, "fp32")
        found = _own(StoredMethod(config, stored.tasks, plan))
        assert [name for name in variants() if name in found] == own


class TestSynthetic:
    @pytest.mark.parametrize("rho", [0.0, 0.3, 1.0])
    def test_any_two_deltas_correlate_by_rho(self, rho):
        a, b = (shared_gaussian(task, 200_000, rho, seed=1)["w"] for task in (0, 5))
        assert float(torch.corrcoef(torch.stack([a, b]))[0, 1]) == pytest.approx(rho, abs=0.01)
        assert float(a.std()) == pytest.approx(1e-3, rel=0.02)
        assert torch.equal(a, shared_gaussian(0, 200_000, rho, seed=1)["w"])
        assert not torch.equal(a, shared_gaussian(0, 200_000, rho, seed=2)["w"])

    def test_two_tasks_are_the_same_at_once_and_in_turn_three_are_not(self):
        rows = measure_synthetic(3, 2000, [0.0], seed=0)
        errors = {(row["variant"], row["session"], row["position"]): row["relative_l2"] for row in rows}
        assert errors["condu", 1, 0] < 1e-6
        for position in (0, 1):
            assert errors["condu", 2, position] == pytest.approx(errors["emr", 2, position], rel=1e-6)
            assert errors["condu", 3, position] != pytest.approx(errors["emr", 3, position], rel=1e-2)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((1, 10, "0"), "--synthetic 1"), ((3, 0, "0"), "--numel 0"), ((3, 10, "1.5"), "--rho 1.5"),
            ((3, 10, "a"), "--rho a"), ((3, 10, ""), "--rho"), ((3, 10, "nan"), "--rho nan"),
        ],
    )  # fmt: skip
    def test_refusals(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            ablate_synthetic(*arguments, seed=0)

    def test_results_can_be_written(self, tmp_path):
        results = ablate_synthetic(4, 100, "0,0.5", seed=0)
        assert len(results["rows"]) == 2 * 2 * 10
        assert len(write_synthetic(results, tmp_path)) == 4


class TestRefusals:
    def test_a_storage_that_is_not_there(self, empty):
        with pytest.raises(MissingRunError, match="no such folder"):
            keep_methods(empty.config, lambda method: True, "all")
        assert not Path(empty.config.storage).exists()  # and none is made

    def test_methods_that_it_is_not_about(self, stored):
        config = stored.config.model_copy(update={"method": ("sequential", "condu", "zero-shot")})
        assert keep_methods(config, lambda method: method.routes, "those").method == ("condu",)
        config = stored.config.model_copy(update={"method": ("sequential",)})
        with pytest.raises(ValueError, match="this is about condu and emr"):
            keep_methods(config, lambda method: method.routes, "condu and emr")

    def test_missing_experts_are_named_with_the_command(self, empty):
        save_expert(empty.config.storage, empty.plan.experts[0].key, empty.deltas["walls"], {})
        with pytest.raises(MissingRunError, match=r"lacks 2 .* expert of task doors") as error:
            empty.run(sessions=False)
        assert f"python jobs/run_mtil.py --data {empty.config.data}" in str(error.value)
        assert str(expert_folder(empty.config.storage, empty.plan.experts[1].key)) in str(error.value)

    def test_a_missing_session_is_named(self, empty):
        empty.save()
        session = empty.plan.sessions[1]
        folder = session_folder(empty.config.run_folder, empty.method.name, 1, "doors", session.state)
        Path(folder, "meta.json").unlink()
        assert empty.run(sessions=False).deltas.keys() == set(TASKS)
        with pytest.raises(MissingRunError, match=r"lacks 1 .* session 2, which learns doors") as error:
            empty.run()
        assert str(folder) in str(error.value)

    def test_another_recipe_is_another_run(self, stored):
        config = stored.config.model_copy(update={"seed": 1})
        plan = plan_method(stored.method, config, stored.tasks, stored.fingerprint, "fp32")
        with pytest.raises(MissingRunError, match="lacks 6 "):
            StoredMethod(config, stored.tasks, plan).require([], sessions=True)


class TestJobs:
    """The jobs in this process, on experts and sessions made by hand."""

    def call(self, monkeypatch, name, *flags):
        monkeypatch.setattr("condu_ray.orchestration.cluster.env.apply", lambda: None)
        monkeypatch.setattr(sys, "argv", [name, *flags])
        runpy.run_path(str(JOBS / name), run_name="__main__")

    @pytest.mark.usefixtures("undrawn")
    def test_merging(self, stored, monkeypatch, capsys):
        flags = [*stored.flags, "--training.precision", "fp32", "--evaluation.max_images", "6", "--sessions", "last"]
        self.call(monkeypatch, "ablate_merging.py", *flags)
        assert "merging-storage.png" in capsys.readouterr().out
        found = json.loads(Path(stored.config.run_folder, "ablation", "merging.json").read_text())
        assert found["tasks"] == list(TASKS)
        assert {row["session"] for row in found["rows"] if "accuracy" in row} == {3}

    def test_merging_refuses(self, empty, monkeypatch, capsys):
        Path(empty.config.storage).mkdir()
        with pytest.raises(SystemExit) as end:
            self.call(monkeypatch, "ablate_merging.py", *empty.flags, "--training.precision", "fp32")
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert "expert of task walls" in error
        assert "python jobs/run_mtil.py --data" in error

    @pytest.mark.usefixtures("undrawn")
    def test_synthetic(self, tmp_path, monkeypatch):
        flags = ["--synthetic", "3", "--numel", "50", "--storage", str(tmp_path / "s")]
        self.call(monkeypatch, "ablate_merging.py", *flags)
        assert (tmp_path / "s" / "ablation" / "synthetic.png").is_file()

    @pytest.mark.usefixtures("undrawn")
    def test_inference(self, stored, monkeypatch, capsys):
        from condu_ray.learn.prototype_store import FILE, prototype_key
        from condu_ray.store.layout import prototype_folder

        for seed, task in enumerate(stored.tasks):
            count = len(task.classes)
            tensors = {"sums": unit_rows(count, seed).double(), "counts": torch.ones(count, dtype=torch.int64)}
            tensors["text"] = unit_rows(count, 9 + seed)
            folder = prototype_folder(stored.config.storage, prototype_key(stored.fingerprint, task))
            artifacts.publish(folder, {}, lambda path, tensors=tensors: artifacts.save_tensors(path / FILE, tensors))
        asked, load = [], prototype_store.load_prototypes
        spy = lambda *given, **rest: asked.append(rest) or load(*given, **rest)  # noqa: E731
        monkeypatch.setattr(prototype_store, "load_prototypes", spy)
        flags = [*stored.flags, "--training.precision", "fp32", "--evaluation.max_images", "6"]
        flags += ["--inference.prototype_text", "mean"]
        self.call(monkeypatch, "ablate_inference.py", *flags)
        assert {(one["images"], one["text"]) for one in asked} == {("training", "mean")}
        found = json.loads(Path(stored.config.run_folder, "ablation", "inference.json").read_text())
        assert len(found["options"]) == len(OPTIONS)
        assert [row["experts"] for row in found["memory"]] == [1, 2, 3]
        assert "inference-cost.png" in capsys.readouterr().out

    def test_a_session_that_is_not_there_is_named_as_it_was_given(self, empty, monkeypatch, capsys):
        flags = [*empty.save().flags, "--training.precision", "fp32", "--routing", "9"]
        with pytest.raises(SystemExit) as end:
            self.call(monkeypatch, "ablate_inference.py", *flags)
        assert end.value.code == 2
        assert "--routing 9: '9' is not" in capsys.readouterr().err

    @pytest.mark.parametrize("method", ["condu-svd", "condu-sign"])
    def test_inference_is_for_what_keeps_a_unified_delta(
        self, method, tmp_path, task_data, small_backbone, monkeypatch, capsys
    ):
        coded = Stored(tmp_path / "s", task_data, small_backbone, method).save()
        flags = [*coded.flags, "--training.precision", "fp32", "--method", method]
        with pytest.raises(SystemExit) as end:
            self.call(monkeypatch, "ablate_inference.py", *flags)
        assert end.value.code == 2
        assert "this is about condu, condu-lora and emr" in capsys.readouterr().err

    def test_routing(self, empty, monkeypatch, capsys):
        monkeypatch.setattr(moments_module, "RANDOM", 16)  # a test has not the time for more
        moments_module._projection.cache_clear()
        flags = [*empty.save().flags, "--training.precision", "fp32", "--routing", "1,3"]
        self.call(monkeypatch, "ablate_inference.py", *flags)
        folder = Path(empty.config.run_folder, "ablation")
        found = json.loads((folder / "routing.json").read_text())
        assert {row["session"] for row in found["rows"]} == {1, 3}
        assert "routing-curves.png" in capsys.readouterr().out
        page = (folder / "routing.md").read_text()
        for kind in ("prototype", "gaussian", "ridge"):
            assert f"mixture, {kind}" in page
            assert np.allclose(np.sum(found["routing"]["confusion"][kind], axis=1), 100)
        run, evaluator = empty.run(), empty.evaluator()
        for session, task, rule in ((1, 1, "mixture, gaussian"), (3, 2, "mixture, ridge"), (3, 0, "paper")):
            assert self.measured(run, evaluator, session, task, rule) == pytest.approx(
                self.images(run, evaluator, session, rule)[task]
            )
        held_out = replace(run, held_out=run.tasks)
        plain, scaled = (self.right(one, evaluator) for one in (run, held_out))
        warm = routing.Session.of(held_out, evaluator, 3).routing.temperatures
        assert warm.keys() == set(TASKS)
        assert all(value != 1 for value in warm.values())
        assert plain["paper"] == scaled["paper"]

        moments_module._projection.cache_clear()

    def measured(self, run, evaluator, session, place, rule):
        """Accuracy over the union, as an evaluator of a run measures it."""
        state, names = run.state(session - 1), [task.name for task in run.tasks]
        options = routing.rules(run.config.inference, session < 3)[rule]
        learned = [run.tasks[names.index(name)] for name in state.tasks]
        backbone = evaluator.features.backbone
        scale = float(backbone.model.logit_scale.detach().exp())
        known = load_routing(run.config.storage, backbone.fingerprint, learned, options, scale)
        experts = {name: run.weights(state, name) for name in state.tasks}
        found = evaluator.aggregated(
            run.tasks[place], experts, known.prototypes, options, run.tasks, False, known, learned
        )
        return found.correct / found.images

    def right(self, run, evaluator):
        right, _ = routing.Session.of(run, evaluator, 3).predict()
        return {rule: [one.tolist() for one in found] for rule, found in right["union"].items()}

    def images(self, run, evaluator, session, rule):
        right, _ = routing.Session.of(run, evaluator, session).predict()
        return [one.mean() for one in right["union"][rule]]

    def test_inference_refuses(self, empty, monkeypatch, capsys):
        monkeypatch.setattr("condu_ray.orchestration.cluster.env.apply", lambda: None)
        Path(empty.config.storage).mkdir()
        with pytest.raises(SystemExit) as end:
            self.call(monkeypatch, "ablate_inference.py", *empty.flags, "--training.precision", "fp32")
        assert end.value.code == 2
        assert "lacks 6 experts or sessions" in capsys.readouterr().err


class TestRoutingNumbers:
    def test_interval_by_hand(self):
        own, other = [np.array([1, 1, 0, 1], bool), np.array([1, 0], bool)], [np.array([1, 0, 0, 0], bool)] * 1
        other.append(np.array([1, 1], bool))
        found = routing_numbers.interval(own, other)
        assert found[0] == pytest.approx(100 * ((0.75 + 0.5) / 2 - (0.25 + 1) / 2))
        assert found[3] == pytest.approx(100.0)
        assert found[1] < found[0] < found[2]
        assert routing_numbers.interval(own, own)[:3] == [0, 0, 0]

    def test_auroc_by_hand(self):
        assert routing_numbers.auroc(torch.tensor([3.0, 2.0]), torch.tensor([1.0, 2.0, 0.0])) == pytest.approx(5.5 / 6)
        assert routing_numbers.auroc(torch.ones(4), torch.ones(5)) == 0.5

    def test_area_by_hand(self):
        assert routing_numbers.area([[80, 0], [60, 40], [0, 50]]) == pytest.approx((40 * 70 + 10 * 30) / 100)

    def test_intervals_are_as_wide_as_the_images_say(self):
        """Of many images they are 1.96 standard errors to both sides; tasks count alike, whatever their images."""
        draw = np.random.default_rng(1)
        own, other = ([draw.random(count) < share for count in (9000, 4000)] for share in (0.8, 0.6))
        paper = [one.copy() for one in other]
        pairs = list(zip(own, other, strict=True))
        mine, theirs = (np.mean([pair[place].mean() for pair in pairs]) for place in range(2))

        def error(values):  # of the mean over both tasks
            return np.sqrt(sum(one.var() / len(one) for one in values)) / 2

        differences = [a.astype(float) - b for a, b in pairs]
        ratios = [(a - mine / theirs * b) / theirs for a, b in pairs]
        found = routing_numbers.interval(own, other)
        right = {"own": {"paper": paper, "zero-shot": paper, "mine": own}, "union": {}}
        (row,) = [row for row in routing_numbers.transfer([(0, right)]) if row["rule"] == "mine"]
        for (value, low, high), wanted, size in (
            (found[:3], mine - theirs, error(differences)),
            (found[3:], mine / theirs, error(ratios)),
            (row["over_paper"], mine - theirs, error(differences)),
        ):
            assert value == pytest.approx(100 * wanted)
            assert [value - low, high - value] == pytest.approx([196 * size] * 2, rel=0.07)

    def test_area_begins_at_the_highest(self):
        assert routing_numbers.area([[60, 40], [80, 20]]) == pytest.approx((20 * 80 + 20 * 70) / 100)

    def test_area_falls_where_accuracy_on_unlearned_tasks_stands_still(self):
        """Nearly all images are called new in the end, and none in the beginning: such points are many."""
        points = [[90, 0], [80, 0], [60, 40], [30, 40], [20, 50], [0, 50]]
        wanted = pytest.approx((40 * 70 + 10 * 25) / 100)
        assert routing_numbers.area(points) == routing_numbers.area(points[::-1]) == wanted

    def test_transfer_by_hand(self):
        """Two sessions of three tasks: the first has learned one, the second two."""
        generator = np.random.default_rng(0)
        told = []
        for learned in (1, 2, 3):
            draw = [generator.random((3, count)) < 0.5 for count in (4, 30, 20)]
            rules = {name: [one[place] for one in draw] for place, name in enumerate(("paper", "zero-shot", "mine"))}
            told.append((learned, {"own": rules | {"task known": rules["mine"][:learned]}, "union": rules}))
        found = {(row["protocol"], row["rule"]): row for row in routing_numbers.transfer(told)}
        assert len(found) == 6
        row, first, second = found["own", "mine"], told[0][1]["own"], told[1][1]["own"]
        means = {
            name: ((first[name][1].mean() + first[name][2].mean()) / 2 + second[name][2].mean()) / 2
            for name in first
            if "task" not in name
        }
        assert row["accuracy"] == pytest.approx(100 * means["mine"])
        for key, other in (("over_paper", "paper"), ("over_zero_shot", "zero-shot")):
            value, low, high = row[key]
            assert value == pytest.approx(100 * (means["mine"] - means[other]))
            assert low < value < high
        assert found["own", "paper"]["over_paper"] == [0, 0, 0]
        assert routing_numbers.transfer(told[2:]) == []
