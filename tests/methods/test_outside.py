"""Methods from outside: found by module and class, known by their own name, and what their identity is made of."""

import importlib
import sys
import textwrap
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from condu_ray import evaluate, fine_tune, load_backbone, load_tasks
from condu_ray.benchmark.orders import Order
from condu_ray.config import Experiment, Sweep, Training
from condu_ray.merging import DeltaError
from condu_ray.methods import METHODS, ModelState, get, registry
from condu_ray.methods.registry import MethodError, listed, take
from condu_ray.methods.session import load_session
from condu_ray.orchestration.state import ModelKeeper
from condu_ray.plan.sessions import plan_method
from condu_ray.plan.trials import make_trials
from condu_ray.store.artifacts import read_meta
from condu_ray.store.experts import expert_folder, save_expert

MIDDLE = """
from condu_ray.methods.baselines import Average

class Middle(Average):
    'The mean by another name.'
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module and makes it importable; what it registered is forgotten at the end."""
    names, before = [], set(METHODS)
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, code):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(code))
        names.append(name)
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        for known in set(METHODS) - before:
            del METHODS[known]
        return name

    yield write
    for known in set(METHODS) - before:
        del METHODS[known]
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def installed(monkeypatch):
    """Pretends that packages with some entry points are installed."""

    def install(**points):
        found = [EntryPoint(name.replace("_", "-"), value, registry.GROUP) for name, value in points.items()]
        monkeypatch.setattr(registry, "entry_points", lambda group: found)
        registry._installed.cache_clear()

    yield install
    registry._installed.cache_clear()


def keys(method, tasks, **changes):
    plan = plan_method(get(method, Experiment(**changes)), Experiment(**changes), tasks, "theta0", "fp32")
    return [expert.key for expert in plan.experts], [session.state for session in plan.sessions]


class TestNames:
    def test_it_is_called_as_its_class_and_found_by_that_name_through_the_configuration(self, module):
        module("outer", MIDDLE)
        config = Experiment(method=("outer:Middle", "condu"))
        assert get("outer:Middle").name == "Middle"
        del METHODS["Middle"]  # as in another process
        assert type(get("Middle", config)) is sys.modules["outer"].Middle
        del METHODS["Middle"]
        with pytest.raises(MethodError, match="--method Middle: no such method"):
            get("Middle")

    def test_register_and_merge_rule_give_another_name(self, module):
        module("outer", MIDDLE + "from condu_ray import register\nMiddle = register('mid', 'paper')(Middle)")
        module(
            "rules",
            "from condu_ray import merge_rule\n@merge_rule('first', 'p')\ndef f(d): return next(iter(d.values()))",
        )
        found = take(Experiment(method=("outer:Middle", "rules:f")))
        assert [method.name for method in found] == ["mid", "first"]
        assert sys.modules["rules"].f({"a": 1}) == 1

    def test_a_module_that_is_loaded_again_replaces_its_methods(self, module):
        module("outer", MIDDLE + "from condu_ray import register\nMiddle = register('mid', 'paper')(Middle)")
        old = type(get("outer:Middle"))
        importlib.reload(sys.modules["outer"])
        assert type(get("mid")) is not old

    def test_trials_have_the_name_and_their_configurations_the_place(self, module):
        module("outer", MIDDLE)
        sweep = Sweep(method=("outer:Middle", "condu"), orders="given")
        one, other = make_trials(sweep, [Order("given", ("a", "b"))])
        assert (one.id, one.method) == ("given.Middle.seed0", "Middle")
        assert one.config(sweep.experiment(), "s").method == ("outer:Middle",)
        assert other.config(sweep.experiment(), "s").method == ("condu",)


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("nowhere:Middle", "there is no module nowhere; install it"),
            ("outer:Midle", "module outer has no Midle"),
            ("outer:", "module outer has no class"),
            ("outer:number", "number is neither a subclass of condu_ray's Method nor a merge_rule"),
            ("outer:Condu", r"method Condu is registered twice: condu_ray\.methods\.condu:Condu, outer:Condu"),
            ("outer:Méthode", "'Méthode' cannot be a folder"),
            ("outer:train", "'train' cannot be a folder"),
            ("outer:Served", "overrides delta but not weights"),
            ("broken:Middle", r"module broken cannot be imported \(ZeroDivisionError"),
            ("lacking:Middle", r"module lacking cannot be imported \(No module named 'nowhere'\)"),
            ("outr:Middle,", "there is no module outr"),
        ],
    )
    def test_each_is_one_sentence(self, module, name, message):
        code = """
        number = 3
        class Condu(Average): pass
        class Méthode(Average): pass
        class train(Average): pass
        class Served(Individual):
            def delta(self, state, task, expert): return None
        """
        module("outer", MIDDLE + "from condu_ray.methods.bounds import Individual\n" + textwrap.dedent(code))
        module("broken", "1 / 0")
        module("lacking", "import nowhere")
        with pytest.raises(MethodError, match=message) as error:
            take(Experiment(method=(name,)))
        assert "\n" not in str(error.value)

    def test_two_of_one_name(self, module):
        module("outer", MIDDLE)
        module("other", MIDDLE)
        with pytest.raises(MethodError, match="Middle is registered twice: outer:Middle, other:Middle"):
            take(Experiment(method=("outer:Middle", "other:Middle")))

    def test_what_only_this_process_knows_is_told_how_to_be_written(self, module):
        module("outer", MIDDLE)
        get("outer:Middle")
        with pytest.raises(MethodError, match="write --method outer:Middle"):
            take(Experiment(method=("Middle",)))

    def test_a_rule_that_returns_no_delta(self, module):
        module("rules", "from condu_ray import merge_rule\n@merge_rule('bad', 'p')\ndef f(d): return d['a'].get('x')")
        method, load = get("rules:f"), {"a": {"w": torch.ones(2)}, "b": {"w": torch.ones(2), "x": {}}}.__getitem__
        with pytest.raises(MethodError, match="bad: returned a NoneType"):
            method.merge(ModelState(), "a", "a", load)
        module("rules", "from condu_ray import merge_rule\n@merge_rule('bad', 'p')\ndef f(d): return {}")
        with pytest.raises(DeltaError, match="merged by bad"):
            get("rules:f").merge(ModelState(), "a", "a", load)


class TestEntryPoints:
    def test_they_are_methods_and_listed(self, module, installed):
        module("outer", MIDDLE)
        installed(middling="outer:Middle", gone="nowhere:Gone", condu="outer:Middle")
        config = Experiment(method=("middling",))
        assert [method.name for method in take(config)] == ["Middle"]
        del METHODS["Middle"]
        assert get("Middle", config).name == "Middle"
        lines = {line.split()[0]: line for line in listed()}
        assert "starts from pretrained" in lines["middling"]
        assert "there is no module nowhere" in lines["gone"]
        assert "ConDU" in lines["condu"]
        with pytest.raises(MethodError, match="did you mean middling"):
            get("midling")


class TestIdentity:
    """The hash of the module counts where, and only where, its code may have made the difference."""

    RULE = "from condu_ray import merge_rule\n@merge_rule('first', 'p')\ndef f(d): return next(iter(d.values()))\n"
    TRAINED = MIDDLE + "    def expert_settings(self, position): return {'objective': 'mine'} if position else {}\n"
    OBJECTIVE = MIDDLE + "    def objective(self, lesson): return super().objective(lesson)\n"
    LORA = MIDDLE.replace("Average", "ConduLora").replace("baselines", "condu")

    @pytest.mark.parametrize(
        ("name", "code", "like", "changed"),
        [
            ("outer:f", RULE, "average", [False, False, False]),
            ("outer:Middle", MIDDLE, "average", [False, False, False]),
            ("outer:Middle", LORA, "condu-lora", [False, False, False]),
            ("outer:Middle", TRAINED, None, [False, True, True]),
            ("outer:Middle", OBJECTIVE, None, [True, True, True]),
        ],
    )
    def test_of_experts_and_states(self, module, task_data, name, code, like, changed):
        tasks = load_tasks(task_data)
        module("outer", code)
        experts, states = keys(name, tasks)
        assert like is None or experts == keys(like, tasks)[0]
        module("outer", code + "\n# another line\n")
        other_experts, other_states = keys(name, tasks)
        assert [one != other for one, other in zip(experts, other_experts, strict=True)] == changed
        assert set(states).isdisjoint(other_states)

    def test_a_base_class_from_elsewhere_counts(self, module, task_data):
        tasks = load_tasks(task_data)
        module("outer", MIDDLE)
        module("inner", "from outer import Middle\nclass Inner(Middle): pass")
        before = keys("inner:Inner", tasks)
        module("outer", MIDDLE + "# more")
        module("inner", "from outer import Middle\nclass Inner(Middle): pass")
        after = keys("inner:Inner", tasks)
        assert before[0] == after[0]
        assert set(before[1]).isdisjoint(after[1])


def test_a_run_of_it_without_ray(module, tmp_path, task_data, small_backbone):
    module("outer", TestIdentity.RULE)
    backbone, tasks = load_backbone(pretrained=str(small_backbone)), load_tasks(task_data)
    training = Training(steps=2, batch_size=8, lr=1e-2, precision="fp32")
    config = Experiment(method=("outer:f",), storage=tmp_path / "storage", training=training)
    (method,) = take(config)
    plan, keeper = plan_method(method, config, tasks, backbone.fingerprint, "fp32"), ModelKeeper(config)
    deltas = {task.name: fine_tune(backbone, task, config=config) for task in tasks}
    METHODS.pop("first")  # as in the state actor's process
    for session in plan.sessions:
        save_expert(config.storage, session.expert.key, deltas[session.task], {"task": session.task})
        keeper.merge(method.name, session)
    folder = config.run_folder / "first" / "sessions"
    assert [read_meta(path)["method"] for path in Path(folder).iterdir()] == ["first"] * 3
    state = load_session(config.run_folder, method, keeper.merge("first", plan.sessions[-1]))
    served = method.delta(state, "cars", None)
    assert evaluate(backbone, tasks[2], served).correct == evaluate(backbone, tasks[2], deltas["walls"]).correct
    assert Path(expert_folder(config.storage, plan.experts[0].key)).is_dir()
