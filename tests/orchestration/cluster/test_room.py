import pytest

from condu_ray.orchestration.cluster.room import ResourceError, room

BASE = {
    "workers": 1, "threads": 1, "cpus_per_worker": 0.5, "gpus_per_worker": None, "decoders": 1, "lanes": 0,
    "evaluators": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("resources", "change", "lanes", "evaluators", "gpus"),
    [
        ({"CPU": 2}, {}, 2, 1, 0),
        ({"CPU": 1}, {}, 1, 1, 0),
        ({"CPU": 16}, {}, 16, 8, 0),
        ({"CPU": 16}, {"threads": 4}, 4, 2, 0),
        ({"CPU": 8}, {"workers": 2}, 4, 2, 0),
        ({"CPU": 8}, {"lanes": 1}, 1, 1, 0),
        ({"CPU": 16, "GPU": 1}, {}, 1, 1, 0.6),
        ({"CPU": 32, "GPU": 4}, {}, 3, 1, 1),
        ({"CPU": 32, "GPU": 4}, {"workers": 3}, 1, 1, 1),
        ({"CPU": 128, "GPU": 16}, {"workers": 2}, 7, 2, 1),
        ({"CPU": 8, "GPU": 2}, {"gpus_per_worker": 0}, 8, 4, 0),
        ({"CPU": 16, "GPU": 1}, {"gpus_per_worker": 1}, 1, 1, 1),
        ({"CPU": 16, "GPU": 1}, {"gpus_per_worker": 0.5}, 1, 1, 0.5),
        ({"CPU": 16, "GPU": 1}, {"gpus_per_worker": 0.4}, 1, 1, 0.4),
        ({"CPU": 16, "GPU": 1}, {"gpus_per_worker": 0.25}, 3, 1, 0.25),
        ({"CPU": 32, "GPU": 4}, {"gpus_per_worker": 0.6}, 3, 1, 0.6),
        ({"CPU": 32, "GPU": 4}, {"gpus_per_worker": 0.5}, 7, 1, 0.5),
        ({"CPU": 32, "GPU": 4}, {"gpus_per_worker": 0.4, "evaluators": 3}, 5, 3, 0.4),
        ({"CPU": 32, "GPU": 4}, {"gpus_per_worker": 0.6, "workers": 3}, 1, 1, 0.6),
    ],
)
def test_room(resources, change, lanes, evaluators, gpus):
    found = room(resources, **(BASE | change))
    assert (found.lanes, found.evaluators, found.gpus_per_worker) == (lanes, evaluators, gpus)
    cpus = found.lanes * BASE["decoders"] * (BASE | change)["workers"] * 0.75 + found.evaluators * 0.25
    assert cpus <= resources["CPU"]


@pytest.mark.parametrize(
    ("resources", "decoders"),
    [
        ({"CPU": 2}, 1),
        ({"CPU": 64}, 1),
        ({"CPU": 16, "GPU": 1}, 4),
        ({"CPU": 16, "GPU": 4}, 3),
        ({"CPU": 4, "GPU": 4}, 1),
        ({"CPU": 2, "GPU": 1}, 1),
    ],
)
def test_data_workers_follow_from_the_cpus_of_a_gpu_where_nobody_says_how_many(resources, decoders):
    assert room(resources, **(BASE | {"decoders": 0})).decoders == decoders
    assert room({"CPU": 64, "GPU": 1}, **(BASE | {"decoders": 2})).decoders == 2
    assert room(resources, **(BASE | {"decoders": 0, "gpus_per_worker": 0})).decoders == 1


@pytest.mark.parametrize(
    ("resources", "change", "words"),
    [
        ({"CPU": 1}, {"cpus_per_worker": 1.0}, "one lane of 1 workers needs 1.2 CPUs"),
        ({"CPU": 2}, {"workers": 4}, "needs 2.8 CPUs"),
        ({"CPU": 2}, {"lanes": 3}, "training.lanes is 3, but the cluster has room for 2"),
        ({"CPU": 4}, {"gpus_per_worker": 1}, "has no GPU"),
        ({"CPU": 64, "GPU": 4}, {"workers": 4}, "4 GPUs"),
        ({"CPU": 64, "GPU": 4}, {"workers": 4, "gpus_per_worker": 0.6}, "2.4 GPUs besides .* and 0.6 GPUs"),
        ({"CPU": 64, "GPU": 4}, {"workers": 2, "gpus_per_worker": 0.5}, "on one GPU, which NCCL refuses"),
        ({}, {}, "0 CPUs"),
    ],
)
def test_what_would_wait_for_ever_is_refused_with_its_numbers(resources, change, words):
    with pytest.raises(ResourceError, match=words):
        room(resources, **(BASE | change))


GPU_NODE, HEAD = {"CPU": 8.0, "GPU": 1.0}, {}


@pytest.mark.parametrize(
    ("nodes", "change", "lanes"),
    [
        ([HEAD, {"CPU": 2.0}, {"CPU": 2.0}, {"CPU": 2.0}], {"cpus_per_worker": 1}, 3),  # 4 by the sum: one would wait
        ([{"CPU": 1.0}] * 3, {"cpus_per_worker": 0.7}, 2),  # beside two of them no evaluator stands
        ([{"CPU": 1.0}] * 4, {"workers": 2}, 2),
        ([{"CPU": 1.0}] * 3, {"workers": 2, "cpus_per_worker": 0.7}, 1),
        ([HEAD, GPU_NODE, GPU_NODE, GPU_NODE], {}, 2),
        ([{"CPU": 64.0}, {"CPU": 4.0, "GPU": 4.0}], {}, 3),
        ([{"CPU": 64.0}, {"CPU": 2.0, "GPU": 4.0}], {}, 2),  # what CPUs there are beside these GPUs
        ([{"CPU": 16.0}, *[{"CPU": 1.0, "GPU": 1.0}] * 3], {"decoders": 0}, 2),
        ([{"CPU": 16.0, "GPU": 3.0}, {"CPU": 16.0, "GPU": 3.0}], {"gpus_per_worker": 2}, 2),
    ],
)
def test_a_worker_stands_on_one_node(nodes, change, lanes):
    resources = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
    assert room(resources, nodes=nodes, **(BASE | change)).lanes == lanes


@pytest.mark.parametrize(
    ("nodes", "change", "words"),
    [
        ([HEAD, *[{"CPU": 1.0}] * 3], {"cpus_per_worker": 1}, "4 nodes hold 0 .* of 1.2 CPUs .* node has 1 CPUs"),
        ([{"CPU": 1.0}, {"CPU": 1.0}], {"workers": 2, "cpus_per_worker": 0.6}, "hold 1 .* a lane has 2, of 0.8 CPUs"),
        ([GPU_NODE] * 4, {"gpus_per_worker": 2}, "hold 0 .* and 2 GPUs each, .* largest node has 8 CPUs and 1 GPUs"),
        ([{"CPU": 64.0}, {"CPU": 0.5, "GPU": 4.0}], {}, "largest node has 0.5 CPUs and 4 GPUs"),
    ],
)
def test_what_no_node_holds_is_refused_though_all_together_have_it(nodes, change, words):
    """Ray would wait for such a node for ever, and the run for its lanes."""
    resources = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
    with pytest.raises(ResourceError, match=words):
        room(resources, nodes=nodes, **(BASE | change))


@pytest.mark.parametrize("share", [None, 0.1, 0.25, 0.4, 0.5, 0.6, 0.9, 1, 2])
@pytest.mark.parametrize("gpus", [1, 2, 4])
def test_an_evaluator_has_room_in_a_workers_place(gpus, share):
    """Where lanes have ended others start in their places, and are given work: one without room keeps it for ever."""
    if share and share > gpus:
        return
    try:
        found = room({"CPU": 64, "GPU": gpus}, **(BASE | {"gpus_per_worker": share}))
    except ResourceError:  # two GPUs a worker, and no third
        return
    assert found.gpus_per_evaluator <= found.gpus_per_worker
    shares = sorted([found.gpus_per_worker] * found.lanes + [found.gpus_per_evaluator] * found.evaluators, reverse=True)
    left = [1.0] * gpus
    for wanted in shares:  # each on one GPU, as Ray places it
        for _ in range(max(1, int(wanted))):
            one = min(wanted, 1)
            place = next(place for place, free in enumerate(left) if free + 1e-9 >= one)
            left[place] -= one
