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
        ({}, {}, "0 CPUs"),
    ],
)
def test_what_would_wait_for_ever_is_refused_with_its_numbers(resources, change, words):
    with pytest.raises(ResourceError, match=words):
        room(resources, **(BASE | change))
