"""A sweep whose values make one and the same is refused, or told of, before anything is spent."""

import pytest

from condu_ray.benchmark.orders import draw_orders
from condu_ray.command_line import ConfigError
from condu_ray.config import Sweep
from condu_ray.plan.idle import idle_axes
from condu_ray.plan.preflight import check
from condu_ray.plan.trials import make_trials


@pytest.fixture(scope="module")
def said(tmp_path_factory, task_data, small_backbone):
    """Returns a function: what is said of a sweep over three tasks."""
    settings = {"storage": tmp_path_factory.mktemp("s"), "data": task_data, "pretrained": str(small_backbone)}
    checked = check(Sweep(**settings).experiment())

    def say(method, *axes, **changes):
        sweep = Sweep(**settings, method=method, sweep=axes, **changes)
        trials = make_trials(sweep, draw_orders(("walls", "doors", "cars"), 2, 0))
        return idle_axes(checked.under(sweep.experiment()), trials)

    return say


@pytest.mark.parametrize(
    ("method", "axes", "changes"),
    [
        ("condu", ["lora.rank=8,16"], {}),
        ("condu", ["training.steps=10,20", "merging.shards=1,2"], {}),
        ("condu,average", ["merging.ties_density=0.1,0.2"], {}),
        ("zero-shot", ["training.lr=1e-4,1e-3"], {}),
        ("condu", ["lora.lr=1e-4,1e-3"], {}),
        ("condu", ["inference.novelty_prior=0.5,0.7"], {}),
        ("condu", ["inference.router_means=class,task"], {}),
        ("condu-svd", ["inference.aggregation=auto,mixture"], {}),
        ("condu", ["inference.top_k=2,4,9"], {}),  # of three experts and theta0
        ("condu", ["inference.pretrained_weight=best,equal"], {"inference": {"include_pretrained": False}}),
        ("condu", ["inference.prototype_text=unit,mean"], {"inference": {"router": "gaussian"}}),
        ("condu", ["inference.prototype_images=training,all"], {}),
        ("average", ["inference.top_k=1,2"], {}),
        ("zscl", ["training.steps=10,20", "distillation.vocabulary=10,20"], {}),
    ],
)
def test_an_axis_of_values_that_change_nothing_is_refused(said, references, method, axes, changes):
    if "zscl" in method:
        changes = {"distillation": {"reference": references}}
    axis = axes[-1].split("=")[0]
    with pytest.raises(ConfigError) as error:
        said(method, *axes, **changes)
    words = (f"--sweep {axis}: ", " and ", *method.split(","), "leave the axis out")
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("method", "axes", "changes"),
    [
        ("condu-lora", ["lora.rank=8,16"], {}),
        ("condu", ["training.lr=1e-4,1e-3", "training.steps=10,20"], {}),
        ("ties,average", [], {}),
        ("pam", ["pam.merge=average,ties", "merging.ties_density=0.1,0.2"], {}),  # the second for one of the first
        ("condu-svd", ["inference.novelty_prior=0.5,0.7"], {}),
        ("condu-svd", ["inference.top_k=2,4"], {}),
        ("condu", ["inference.prototypes=both,image", "inference.router=prototype,gaussian"], {}),
        ("condu", ["inference.pretrained_weight=best,equal"], {}),
    ],
)
def test_an_axis_that_changes_something_is_not(said, method, axes, changes):
    assert said(method, *axes, **changes) == []


def test_a_method_that_an_axis_changes_nothing_of_is_told_of(said):
    (words,) = said("condu,condu-lora", "lora.rank=8,16")
    assert words == "--sweep lora.rank: changes nothing of condu: 8 and 16 are one and the same to it"
    words = said("zero-shot,condu,average", "training.lr=1e-4,1e-3", "merging.rescaler=l1,tensor_mean")
    about = [(word.split(":")[0], word.split(":")[1]) for word in words]
    assert about == [
        ("--sweep training.lr", " changes nothing of zero-shot"),
        ("--sweep merging.rescaler", " changes nothing of zero-shot"),
        ("--sweep merging.rescaler", " changes nothing of average"),
    ]


@pytest.fixture
def references(task_data, tmp_path):
    return str(task_data / "walls")
