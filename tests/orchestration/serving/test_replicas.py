"""Replicas without Ray Serve around them: loading beside what is there, health, and batches of mixed questions."""

import asyncio
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from condu_ray import Predictor, open_run
from condu_ray.orchestration.serving import replicas
from condu_ray.orchestration.serving.replicas import Experts, Replica, Router, model_id
from condu_ray.store.artifacts import ArtifactError
from condu_ray.use.loading import resolved
from condu_ray.use.request import Asked, read_picture
from condu_ray.use.serving import Serving, Source
from condu_ray.vlm.preprocess import Preprocessor
from tests.use.test_edition import same

SERVING = Serving(batch_size=16).model_dump(mode="json")


@pytest.fixture(scope="module")
def source(storage):
    return Source(run="r", storage=str(storage), method="condu", session=2)


@pytest.fixture(scope="module")
def pictures(storage):
    tasks = open_run(storage, "r").tasks
    return [image for task in tasks for image in pq.read_table(task.test)["image"].to_pylist()[:2]]


def test_a_new_state_is_loaded_beside_the_old_one_and_what_fails_is_left(source):
    async def run():
        replica, old = Replica(SERVING, workers=1), resolved(source)
        await replica.reconfigure(source.model_dump())
        assert replica._editions.sources == (old,)
        await replica.check_health()
        await replica.reconfigure(source.model_dump() | {"session": None})
        assert replica._ready == old  # it has not waited
        about = await replica._loading
        assert (about.source.session, replica._ready.session) == (3, 3)
        assert set(replica._editions.sources) == {old, about.source}
        await replica.reconfigure(source.model_dump() | {"session": 9})
        with pytest.raises(ValueError, match=r"session|sessions"):
            await replica._loading
        assert replica._ready.session == 3
        await replica.check_health()
        with torch.no_grad():
            replica._editions.get(about.source).predictor.served.backbone.model.visual.proj.fill_(np.nan)
        with pytest.raises(RuntimeError, match="gives no numbers"):
            await replica.check_health()

    asyncio.run(run())


def test_a_replica_that_cannot_load_at_its_start_fails(source):
    with pytest.raises(ValueError, match=r"condo"):
        asyncio.run(Replica(SERVING, workers=1).reconfigure(source.model_dump() | {"method": "condo", "session": None}))


@pytest.mark.parametrize("method", ["condu", "condu-svd"])
def test_a_state_that_no_picture_can_be_routed_by_takes_no_others_place(storage, tmp_path, method):
    """As one that is followed before its run has made all prototypes."""
    place = shutil.copytree(storage, tmp_path / "storage")
    source = Source(run="r", storage=str(place), method=method, session=2)

    async def run():
        router, experts = Router(SERVING, None), Experts(SERVING)
        await router.prepare(source)
        shutil.rmtree(place / "prototypes")
        with pytest.raises(ArtifactError, match=r"the prototypes of task .* are not there"):
            await router.prepare(source.model_copy(update={"session": 3}))
        assert router._ready.session == 2
        await router.check_health()
        await experts.prepare(source)  # which routes nothing, and needs none

    asyncio.run(run())


class Handle:
    """Calls a replica in place of Ray Serve."""

    def __init__(self, replica):
        self._replica, self.models = replica, []

    def options(self, multiplexed_model_id):
        self.models.append(multiplexed_model_id)
        return self

    @property
    def logits(self):
        class Method:
            remote = staticmethod(self._replica.logits)

        return Method()


def test_a_batch_of_mixed_questions_and_sessions_is_the_predictors(source, storage, pictures, monkeypatch):
    """The functions that Ray Serve hands batches to, by themselves."""
    monkeypatch.setattr(replicas, "KNOWN", 1)

    async def run():
        experts = Experts(SERVING)
        handle = Handle(experts)
        router = Router(SERVING, handle)
        asked = [Asked(), Asked(top_k=2), Asked(classes=("a sheep", "red")), Asked(classes=("a", "a")), Asked()]
        sessions = [2, 2, 2, 2, 3]
        sources = [source.model_copy(update={"session": number}) for number in sessions]
        preprocessor = Preprocessor((await router.prepare(source)).preprocess)
        read = [read_picture(one, preprocessor, Serving()) for one in pictures]
        items = list(zip(sources, asked, read[:5], strict=True))
        routed = await Router._batch.__wrapped__(router, items)
        for task in ("doors", "walls"):
            expert = await experts.expert_of(source, task)
        assert list(experts._sources) == [model_id(source, "walls")]
        tasks = [(source, Asked("walls", top_k=one.top_k, classes=one.classes), pixels)
                 for one, pixels in zip(asked, read, strict=False)]  # fmt: skip
        known = await Experts._batch.__wrapped__(experts, [(item, expert) for item in tasks])
        return routed, known, handle.models

    routed, known, models = asyncio.run(run())
    predictors = {number: Predictor.load(open_run(storage, "r"), number - 1, "cpu", "condu") for number in (2, 3)}
    words = [None, None, ("a sheep", "red"), None, None]
    for place, (number, classes, top_k) in enumerate(zip([2, 2, 2, 2, 3], words, [5, 2, 5, 5, 5], strict=True)):
        if place == 3:
            assert routed[3] == known[3] == "classes: 'a' is there twice"
            continue
        same(routed[place], predictors[number].predict(pictures[place], classes=classes, top_k=top_k)[0])
        same(known[place], predictors[2].predict(pictures[place], "walls", classes, top_k)[0])
    assert {name.partition("/")[0] for name in models} == {
        source.model_copy(update={"session": number}).key for number in (2, 3)
    }


def test_experts_of_editions_have_names_of_their_own(source):
    assert model_id(source, "walls") != model_id(source.model_copy(update={"session": 3}), "walls")
    assert model_id(source, "walls").endswith("/walls")
