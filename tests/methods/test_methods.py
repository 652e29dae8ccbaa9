"""A table of methods x properties: what each trains from, shares, reads, keeps and serves."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors import safe_open

from condu_ray.config import Experiment
from condu_ray.learn.objective import Objective
from condu_ray.methods import METHODS, ModelState, get
from condu_ray.methods.counted import Counted
from condu_ray.methods.registry import MethodError, register
from condu_ray.methods.session import let_go, load_session, save_session, session_folder
from condu_ray.store.artifacts import save_tensors
from condu_ray.store.experts import FILES, save_expert
from condu_ray.store.ledger import ROOT, Entry
from condu_ray.vlm import lora


@dataclass(frozen=True)
class Row:
    """What is known of a method.

    Attributes:
        start: `starts_from`.
        first: the method whose first expert it shares; its own name: nobody's but that of rows that name it.
        reads: experts that a merge reads: `new`, `all twice`, `none`, or `counted`: the new one where a tally has
            those before, else all so far.
        keeps: what the state after three tasks takes on disk, in bytes of one delta (or pair of factors).
        one: whether one model answers for all tasks.
        routes: whether unlearned tasks go to the nearest experts.
        adapter: what is trained.
        objective: class of the second task's objective.
        needs: what training wants beside its task.
        serves: factor of the task's own expert that serves the first task alone; None: not a multiple of it.
    """

    start: str
    first: str = "individual"
    reads: str = "none"
    keeps: float = 0.0
    one: bool = True
    routes: bool = False
    adapter: str = "full"
    objective: str = "Objective"
    needs: frozenset[str] = frozenset()
    serves: float | None = 1.0


UNIFIED = 1 + 3 / 32  # u in float32, and a bit a position and task
_LAYOUT = 47 / (4 * 2928)  # of two tensors, compressed
SIGNED = 1 + 3 * (1 / 32 + (2 * 61 + 2 * 8) / (4 * 2928) + _LAYOUT)  # magnitude; signs, norms and counts
LOW_RANK = 3 * (60 / (4 * 2928) + 2 * 12 / (4 * 2928) + _LAYOUT)
ROWS = {
    "zero-shot": Row("nothing", first="", serves=None),
    "individual": Row("pretrained", one=False),
    "sequential": Row("previous"),
    "average": Row("pretrained", reads="new", keeps=1),
    "task-arithmetic": Row("pretrained", reads="new", keeps=1, serves=0.3),
    "ties": Row("pretrained", reads="counted", keeps=1, serves=None),
    "magmax": Row("previous", reads="new", keeps=1, serves=0.5),
    "dare": Row("pretrained", reads="new", keeps=1, serves=None),
    "consensus": Row("pretrained", reads="all twice", keeps=1, serves=0.3),
    "tsv-m": Row("pretrained", reads="counted", keeps=1),
    "iso-c": Row("pretrained", reads="counted", keeps=1, serves=None),
    "opcm": Row("pretrained", reads="new", keeps=1),
    "wise-ft": Row("state", reads="new", keeps=1, serves=0.5),
    "emr": Row("pretrained", reads="counted", keeps=UNIFIED, one=False, routes=True),
    "condu": Row("pretrained", reads="new", keeps=UNIFIED, one=False, routes=True),
    "condu-lora": Row("pretrained", "condu-lora", "new", UNIFIED, one=False, routes=True, adapter="lora"),
    "condu-sign": Row("pretrained", reads="new", keeps=SIGNED, one=False, routes=True, serves=None),
    "condu-svd": Row("pretrained", reads="new", keeps=LOW_RANK, one=False, routes=True, serves=None),
    "condu-sign-lora": Row(
        "pretrained", "condu-lora", "new", SIGNED, one=False, routes=True, adapter="lora", serves=None
    ),
    "condu-svd-lora": Row(
        "pretrained", "condu-lora", "new", LOW_RANK, one=False, routes=True, adapter="lora", serves=None
    ),
    "pam": Row("state", "condu-lora", "new", 1, adapter="lora", objective="Aligned"),
    "pam-noalign": Row("state", "condu-lora", "new", 1, adapter="lora"),
    "pam-full": Row("state", reads="new", keeps=1, objective="Aligned"),
    "lwf": Row("previous", "lwf", objective="Lwf"),
    "lwf-vr": Row("previous", "lwf-vr", objective="Lwf"),
    "zscl": Row("previous", "zscl", objective="Zscl", needs=frozenset({"reference"})),
    "icarl": Row("previous", "icarl", objective="First", needs=frozenset({"exemplars"})),
    "rehearsal": Row("previous", "rehearsal", objective="Rehearsal", needs=frozenset({"exemplars"})),
}  # fmt: skip


def keys(found):
    return [expert.key for expert in found.experts]


def test_every_method_of_the_package_has_its_row():
    assert len(ROWS) == 28
    assert ROWS.keys() <= METHODS.keys()


@pytest.mark.parametrize("name", METHODS)
class TestEveryMethod:
    def test_names_its_paper(self, name):
        assert len(METHODS[name].paper) > 10
        assert METHODS[name].__doc__
        assert name == METHODS[name].name

    def test_equal_names_of_weights_are_equal_weights(self, name, toy):
        method, seen, kept = get(name), {}, {}
        for state in toy.usual(name):
            for task in state.tasks:
                weights, found = method.weights(state, task), toy.served(method, state, task)
                assert toy.equal(seen.setdefault(weights, found), found)
                assert toy.equal(kept.setdefault(method.content(state, task), found), found)
        # What no session changes has one name in all of them.
        assert len(kept) == (len(state.tasks) if name.startswith("condu-svd") else len(seen))

    def test_is_deterministic(self, name, toy):
        method = get(name)
        for one, other in zip(toy.states(method), toy.usual(name), strict=True):
            assert one.id == other.id
            assert all(toy.equal(toy.served(method, one, task), toy.served(method, other, task)) for task in one.tasks)

    def test_a_session_comes_back_from_disk_bit_for_bit(self, name, tmp_path, toy):
        method, state = get(name), toy.usual(name)[-1]
        entry = Entry(2, "c", state.experts[-1], ROOT, state.id, 0.0)
        save_session(tmp_path, method, entry, state)
        loaded = load_session(tmp_path, method, entry)
        assert (loaded.id, loaded.tasks, loaded.experts) == (state.id, state.tasks, state.experts)
        assert all(toy.equal(toy.served(method, loaded, task), toy.served(method, state, task)) for task in toy.TASKS)
        if method.starts_from == "state":
            assert toy.equal(method.start(loaded), method.start(state))

    def test_a_session_that_was_let_go_is_merged_again_bit_for_bit(self, name, tmp_path, toy):
        method, parent, entries = get(name, Experiment(storage=tmp_path, run="r")), ROOT, []
        states = toy.states(method)
        for position, state in enumerate(states):
            task, key = state.tasks[-1], state.experts[-1]
            if key is not None:
                files = {}
                if method.form == "factors":
                    factors = toy.expert(method, key, "factors")
                    files = {FILES["factors"]: lambda path, factors=factors: save_tensors(path, factors)}
                save_expert(tmp_path, key, toy.expert(method, key), {}, files)
            entries.append(Entry(position, task, key, parent, state.id, 0.0))
            save_session(method.config.run_folder, method, entries[-1], state, entries[-2] if position else None)
            parent = state.id
        gone = [let_go(method, entries[at], states[at].tasks, states[at].experts, "last") for at in (0, 1)]
        assert gone == [method.keeps_model] * 2
        assert not let_go(method, entries[0], states[0].tasks, states[0].experts, "last")
        for entry, state in zip(entries, states, strict=True):
            loaded = load_session(method.config.run_folder, method, entry)
            assert (loaded.id, loaded.tasks, loaded.experts) == (state.id, state.tasks, state.experts)
            one, other = tmp_path / f"one-{entry.task}", tmp_path / f"other-{entry.task}"
            for folder, found in ((one, loaded), (other, state)):
                folder.mkdir()
                if method.keeps_model:
                    method.save(found.model, folder)
            assert {path.name: path.read_bytes() for path in one.iterdir()} == {
                path.name: path.read_bytes() for path in other.iterdir()
            }

    def test_a_merge_leaves_experts_and_states_as_they_were(self, name, toy):
        method = get(name)
        handed = {}

        def load(key):
            return handed.setdefault(key, toy.expert(method, key, method.form))

        found = toy.states(method, load=load)
        assert all(toy.equal(handed[key], toy.expert(method, key, method.form)) for key in handed)
        for state, again in zip(found, toy.usual(name), strict=True):  # later merges moved nothing of earlier states
            assert all(
                toy.equal(toy.served(method, state, task), toy.served(method, again, task)) for task in state.tasks
            )


@pytest.fixture(scope="module")
def firsts():
    """The key of each method's first expert, planned once."""
    return {}


@pytest.mark.parametrize("name", ROWS)
class TestEveryRow:
    def test_says_what_the_method_says(self, name):
        method, row = get(name), ROWS[name]
        found = (method.starts_from, method.adapter, method.needs, method.routes, method.one_model)
        assert found == (row.start, row.adapter, row.needs, row.routes, row.one)
        assert method.keeps_model == (row.keeps > 0)

    def test_shares_its_first_expert_with_whom_it_can(self, name, plan, firsts):
        for other in METHODS:
            if other not in firsts:
                firsts[other] = keys(plan(other))[:1]
        if ROWS[name].first:
            assert firsts[name]
            assert {other for other in METHODS if firsts[other] == firsts[name]} == {
                other for other, row in ROWS.items() if row.first == ROWS[name].first
            }
        else:
            assert firsts[name] == []

    def test_training_is_plain_exactly_where_no_recipe_says_otherwise(self, name, school):
        method, row = get(name, school.configured()), ROWS[name]
        if row.start == "nothing":
            return
        adapters = {"rank", "scale", "targets", "init", "std"} if row.adapter == "lora" else set()
        assert (method.expert_settings(0).keys() == adapters) == (row.first in ("individual", "condu-lora"))
        for position in (0, 1):
            objective = method.objective(lesson_of(school, name, method.config, position=position))
            assert (type(objective) is Objective) == (method.expert_settings(position).keys() == adapters)
            assert position == 0 or type(objective).__name__ == row.objective

    def test_experts_depend_on_the_order_as_far_as_training_does(self, name, plan, tasks):
        row, orders = ROWS[name], list(itertools.permutations(tasks))
        found = [dict(zip((task.name for task in order), keys(plan(name, order)), strict=False)) for order in orders]
        if row.start in ("pretrained", "nothing"):
            assert all(one == found[0] for one in found)
            return
        seen = {}
        for order, one in zip(orders, found, strict=True):
            for position, task in enumerate(order):
                history = tuple(other.name for other in order[: position + 1])
                assert seen.setdefault(one[task.name], history) == history  # another history is another expert
        assert len(seen) == 3 + 6 + 6  # and the same history is the same expert

    def test_a_merge_reads_only_what_it_has_to(self, name, toy):
        method, read, row = get(name), [], ROWS[name]

        def load(key):
            read.append(key)
            return toy.expert(method, key, method.form)

        def merged(before, task):
            read.clear()
            return method.merge(before, task, f"key-{task}", load) if method.keeps_model else None

        before = ModelState(model=method.initial())
        assert (method.new_tally() is not None) == (row.reads == "counted")
        for task, state in zip(toy.TASKS, toy.usual(name), strict=True):
            if row.reads == "counted":  # another history's tally, or none, is of no use
                merged(replace(before, counted=Counted()), task)
                assert read == [f"key-{task}" for task in state.tasks]
            model = merged(before, task)
            wanted = {"none": (), "all twice": 2 * state.tasks}.get(row.reads, (task,))
            assert read == [f"key-{task}" for task in wanted]
            before = before.after(state.id, task, f"key-{task}", model)

    def test_one_model_is_one_for_all_tasks(self, name, toy):
        method, state = get(name), toy.usual(name)[-1]
        found = [toy.served(method, state, task) for task in (*toy.TASKS, "never learned")] if ROWS[name].one else []
        assert all(toy.equal(found[0], other) for other in found)
        if not ROWS[name].one:
            assert not toy.equal(toy.served(method, state, "a"), toy.served(method, state, "b"))
            assert method.weights(state, "a") != method.weights(state, "b")

    def test_a_single_task_is_served_by_its_expert(self, name, toy):
        method, factor = get(name), ROWS[name].serves
        found = toy.served(method, toy.usual(name)[0], "a")
        if factor is not None:
            own = toy.expert(method, "key-a")
            assert found.keys() == own.keys()
            assert all(torch.allclose(found[k], factor * own[k], rtol=1e-5, atol=1e-5) for k in own)

    def test_a_session_takes_the_storage_that_it_should(self, name, tmp_path, toy):
        method, row = get(name), ROWS[name]
        state = toy.usual(name)[-1]
        save_session(tmp_path, method, Entry(2, "c", state.experts[-1], ROOT, state.id, 0.0), state)
        folder = session_folder(tmp_path, name, 2, "c", state.id)
        files = [path for path in folder.iterdir() if path.name != "meta.json"]
        one = sum(tensor.nbytes for tensor in toy.expert(method, "key-a", method.form).values())
        if row.keeps == 0:
            assert files == []
            return
        found = 0
        for file in files:
            with safe_open(file, "pt") as content:
                own = sum(content.get_tensor(key).nbytes for key in content.keys())  # noqa: SIM118
            assert file.stat().st_size < own + 4096
            found += own
        assert found == pytest.approx(row.keeps * one, rel=0.01, abs=0.005 * one)


def lesson_of(school, name, config, position=1):
    """A lesson of a method, which starts from some adapter where the method starts from its state."""
    lesson = school.lesson(name, config, position=position)
    if get(name, config).starts_from != "state" or position == 0:
        return lesson
    generator = torch.Generator().manual_seed(1)
    start = {key: 0.05 * torch.randn(p.shape, generator=generator) for key, p in lesson.parameters.items()}
    return school.lesson(name, config, position=position, start=start)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.start != "nothing"])
def test_every_objective_trains_and_gives_the_same_bits_again(school, name, toy):
    config = school.configured(training={"steps": 4}, distillation={"ensemble_every": 2}, pam={"align_every": 2})
    lesson = lesson_of(school, name, config)
    before = {key: parameter.detach().clone() for key, parameter in lesson.parameters.items()}
    weights, losses = school.train(lesson, get(name, config).objective(lesson))
    assert len(losses) == 4
    assert all(torch.tensor(loss).isfinite() for loss in losses)
    assert all(tensor.isfinite().all() for tensor in weights.values())
    moved = [key for key in weights if not torch.equal(weights[key], before[key])]
    assert any(key.startswith("visual") for key in moved)
    assert any(not key.startswith("visual") for key in moved)
    again = lesson_of(school, name, config)
    tensors, repeated = school.train(again, get(name, config).objective(again))
    assert repeated == losses
    assert toy.equal(tensors, weights)


@pytest.mark.parametrize(
    ("name", "own", "latest"),
    [
        ("individual", True, False),
        *((name, False, True) for name in ("sequential", "lwf", "lwf-vr", "zscl", "icarl", "rehearsal")),
        ("zero-shot", False, False),
    ],
)
def test_which_expert_answers(name, own, latest, toy):
    method, state = get(name), toy.usual(name)[-1]
    for task in toy.TASKS:
        expected = toy.expert(method, f"key-{task}") if own else toy.expert(method, "key-c") if latest else None
        assert toy.equal(toy.served(method, state, task), expected)


def test_individual_leaves_unseen_tasks_to_the_pretrained_model(toy):
    method = get("individual")
    assert toy.served(method, toy.states(method)[0], "b") is None
    assert method.weights(toy.states(method)[0], "b") == get("zero-shot").weights(ModelState(), "b") == ROOT


@pytest.mark.parametrize(("name", "space"), [("condu", "delta"), ("condu-lora", "delta"), ("condu-lora", "factors")])
def test_condu_serves_mask_times_unified_times_rescaler(name, space, toy):
    method = get(name, Experiment.model_validate({"lora": {"merge": space}}))
    state = toy.states(method)[-1]
    for task in toy.TASKS:
        found, mask = toy.served(method, state, task), state.model.mask(task)
        decoupled = {key: u * mask[key] * state.model.rescalers[task] for key, u in state.model.unified.items()}
        expected = lora.materialise(decoupled, 1.0) if space == "factors" else decoupled
        assert all(torch.allclose(found[key], expected[key], rtol=1e-5) for key in expected)
        assert found.keys() == expected.keys()


def test_unknown_names_get_the_nearest():
    with pytest.raises(MethodError, match="did you mean condu"):
        get("condo")
    with pytest.raises(MethodError, match=r"known: .*sequential"):
        get("xyz")


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="registered twice"):
        register("condu", "another paper")(type("Other", (METHODS["condu"],), {}))
