"""What an option moves: the experts and states of the methods whose it is, what they serve, and nothing else."""

import pytest
import torch

from condu_ray.config import Experiment
from condu_ray.methods import METHODS, get


def keys(found):
    return [expert.key for expert in found.experts]


def identities(found):
    return [session.state for session in found.sessions]


LORA, PAM = (
    {"condu-lora", "condu-sign-lora", "condu-svd-lora", "pam", "pam-noalign"},
    {"pam", "pam-full", "pam-noalign"},
)
DISTILLING = {"lwf", "lwf-vr", "zscl", "icarl", "rehearsal"}
OPTIONS = [
    ("merging", "rescaler", "tensor_mean", {"condu", "condu-lora", "emr"}),
    ("merging", "magmax_scale", 1.0, {"magmax"}),
    ("merging", "bits", 0.5, {"condu-svd", "condu-svd-lora"}),
    ("merging", "residual_signs", False, {"condu-svd", "condu-svd-lora"}),
    ("merging", "text_weight", 2.0, {"condu-svd", "condu-svd-lora"}),
    ("merging", "arithmetic_scale", 0.5, {"task-arithmetic"}),
    ("merging", "ties_density", 0.5, {"ties"}),
    ("merging", "ties_scale", 0.5, {"ties"}),
    ("merging", "dare_drop", 0.5, {"dare"}),
    *(("merging", "dare_rule", rule, {"dare"}) for rule in ("task-arithmetic", "ties")),
    ("merging", "consensus_threshold", 0.2, {"consensus"}),
    ("merging", "consensus_least", 1, {"consensus"}),
    ("merging", "consensus_scale", 0.5, {"consensus"}),
    ("merging", "tsv_scale", 0.5, {"tsv-m"}),
    ("merging", "iso_scale", 0.5, {"iso-c"}),
    ("merging", "opcm_alpha", 0.25, {"opcm"}),
    ("merging", "wise_alpha", 0.25, {"wise-ft"}),
    ("lora", "rank", 5, LORA),
    ("lora", "scale", 2.0, LORA),
    ("lora", "targets", ("attention",), LORA),
    ("lora", "init", "zeros", LORA),
    ("lora", "std", 0.5, LORA),
    ("lora", "lr", 0.5, LORA),
    ("lora", "lr_by_task", {"walls": 0.5}, LORA),
    ("lora", "merge", "factors", {"condu-lora"}),
    ("pam", "adapter", "full", {"pam", "pam-noalign"}),
    *(("pam", option, value, {"pam", "pam-noalign"}) for option, value in (("rank", 5), ("scale", 2.0), ("lr", 0.5))),
    ("pam", "align_every", 3, {"pam", "pam-full"}),
    ("pam", "top_percent", 10.0, {"pam", "pam-full"}),
    ("pam", "align_to", "global", {"pam", "pam-full"}),
    *(("pam", "merge", rule, PAM) for rule in ("condu", "ties", "task-arithmetic", "magmax")),
    ("distillation", "temperature", 3.0, DISTILLING),
    ("distillation", "weight", 0.5, DISTILLING),
    ("distillation", "batch_size", 9, DISTILLING),
    ("distillation", "second_batch", False, {"lwf", "lwf-vr"}),
    ("distillation", "vocabulary", 7, {"lwf-vr"}),
    ("distillation", "vocabulary_length", 7, {"lwf-vr"}),
    ("distillation", "max_captions", 7, {"zscl"}),
    ("distillation", "ensemble_every", 7, {"zscl"}),
    ("distillation", "l2", 7.0, {"zscl"}),
    ("replay", "per_class", 2, {"rehearsal"}),
    ("replay", "memory", 7, {"icarl"}),
]


@pytest.mark.parametrize(("part", "option", "value", "who"), OPTIONS)
def test_an_option_moves_the_states_of_those_whose_it_is_and_of_no_other(plan, part, option, value, who):
    moved = {name for name in METHODS if identities(plan(name)) != identities(plan(name, **{part: {option: value}}))}
    assert moved == who


def test_an_option_of_a_rule_moves_pam_when_it_merges_by_that_rule(plan):
    for rule, option, value in (
        ("condu", "rescaler", "tensor_mean"),
        ("ties", "ties_density", 0.5),
        ("task-arithmetic", "arithmetic_scale", 0.5),
    ):
        one, other = (plan("pam", pam={"merge": rule}, merging=changes) for changes in ({}, {option: value}))
        assert identities(one) != identities(other)
        assert keys(one)[0] == keys(other)[0]  # the first expert is trained before anything is merged
        assert keys(one)[1:] != keys(other)[1:]


def test_an_option_of_a_rule_moves_dare_when_it_merges_by_that_rule(plan):
    for rule, option in (("ties", "ties_density"), ("task-arithmetic", "arithmetic_scale")):
        one, other = (plan("dare", merging={"dare_rule": rule} | changes) for changes in ({}, {option: 0.5}))
        assert keys(one) == keys(other)
        assert identities(one) != identities(other)


def test_alignment_matters_from_the_second_task_on(plan):
    one, other = keys(plan("pam")), keys(plan("pam", pam={"align_every": 3}))
    assert one[0] == other[0]
    assert not set(one[1:]) & set(other[1:])


def test_references_move_zscl_by_their_content(plan, task_data):
    base = keys(plan("zscl"))
    assert keys(plan("zscl", distillation={"reference": (task_data / "walls",)})) != base
    assert keys(plan("zscl", distillation={"reference": (task_data / "cars" / ".." / "cars",)})) == base


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("condu", {"merging": {"rescaler": "tensor_mean"}}),
        ("condu-lora", {"lora": {"merge": "factors"}}),
        ("task-arithmetic", {"merging": {"arithmetic_scale": 0.5}}),
        ("ties", {"merging": {"ties_density": 0.5}}),
        ("ties", {"merging": {"ties_scale": 0.5}}),
        ("wise-ft", {"merging": {"wise_alpha": 0.25}}),
        ("magmax", {"merging": {"magmax_scale": 1.0}}),
        ("dare", {"merging": {"dare_drop": 0.5}}),
        *(("dare", {"merging": {"dare_rule": rule}}) for rule in ("task-arithmetic", "ties")),
        ("dare", {"seed": 1}),
        *(("consensus", {"merging": {f"consensus_{option}": 1}}) for option in ("threshold", "least", "scale")),
        ("tsv-m", {"merging": {"tsv_scale": 0.5}}),
        ("iso-c", {"merging": {"iso_scale": 0.5}}),
        ("opcm", {"merging": {"opcm_alpha": 0.1}}),
        ("condu-svd", {"merging": {"bits": 1.5}}),
        ("emr", {"merging": {"rescaler": "tensor_mean"}}),
        ("pam", {"lora": {"scale": 2.0}}),
        ("pam", {"pam": {"scale": 2.0}}),
        ("pam", {"pam": {"adapter": "full"}}),
        *(("pam", {"pam": {"merge": rule}}) for rule in ("condu", "ties", "task-arithmetic", "magmax")),
        ("pam-full", {"pam": {"merge": "condu"}}),
    ],
)
def test_an_option_changes_what_is_served(name, changes, toy):
    base, other = get(name), get(name, Experiment.model_validate(changes))
    assert not toy.equal(toy.served(base, toy.usual(name)[-1], "a"), toy.served(other, toy.states(other)[-1], "a"))


def test_alpha_is_the_weight_of_the_new_model(toy):
    for alpha in (1.0, 0.0):
        method = get("wise-ft", Experiment.model_validate({"merging": {"wise_alpha": alpha}}))
        found, latest = toy.served(method, toy.states(method)[-1], "a"), toy.expert(method, "key-c")
        assert all(torch.equal(tensor, alpha * latest[key]) for key, tensor in found.items())
