"""The front without Ray: who is asked, a swap that waits for all replicas, and what becomes of replicas' errors."""

import asyncio

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from condu_ray.orchestration.serving import front as front_module
from condu_ray.orchestration.serving.front import Front
from condu_ray.orchestration.serving.replicas import TRIES, again, same
from condu_ray.store.artifacts import ArtifactError
from condu_ray.use.edition import About
from condu_ray.use.request import Asked, RequestError
from condu_ray.use.served import UseError
from condu_ray.use.serving import Serving, Source

PREPROCESS = {"size": (16, 16), "mode": "RGB", "mean": (0.5,) * 3, "std": (0.5,) * 3}


def about(source):
    return About(source, f"session {source.session}", ("walls",), {"walls": ("red",)}, PREPROCESS,
                 {"": None, "walls": "walls"}, {})  # fmt: skip


class Handle:
    """A deployment of one replica; `answers` are given in turn, the last one for ever; errors are raised."""

    def __init__(self, *answers):
        self.answers, self.calls, self.models, self.gate, self.gone = list(answers), [], [], None, []

    def options(self, multiplexed_model_id):
        self.models.append(multiplexed_model_id)
        return self

    def __getattr__(self, name):
        handle = self

        class Method:
            async def remote(self, *arguments):
                handle.calls.append((name, *arguments))
                if name == "prepare":
                    return await handle._prepare(*arguments)
                found = handle.answers.pop(0) if len(handle.answers) > 1 else handle.answers[0]
                if isinstance(found, Exception):
                    raise found
                return found

        return Method()

    async def _prepare(self, source):
        if self.gate is not None:
            await self.gate.wait()
        if source.session == 9:
            raise ValueError("has committed 3 sessions, not 9")
        return about(source.model_copy(update={"session": source.session or 3}))

    def broadcast(self, name, source=None):
        handle = self

        class All:
            async def results_async(self, **limits):
                if handle.gone:
                    raise handle.gone.pop(0)
                if name == "ready":
                    return handle.answers
                handle.calls.append(("all", name, source))
                return [await handle._prepare(source)]

        return All()


async def front_of(router, experts, session=2):
    front = Front(Serving(time_limit=5).model_dump(), router, experts)
    await front.reconfigure({"run": "r", "session": session})
    return front


def asking(answers, asked, session=2):
    """What a front says of a picture."""

    async def run():
        router, experts = Handle(*answers), Handle(*answers)
        front = await front_of(router, experts, session)
        router.calls.clear(), experts.calls.clear()
        return await front.predict(front.about, np.zeros((16, 16, 3), np.uint8), asked), router, experts

    return asyncio.run(run())


def test_the_router_or_the_tasks_expert_is_asked():
    found, router, experts = asking([{"class": "red"}], Asked())
    assert found == {"class": "red"}
    assert [call[0] for call in router.calls] == ["answer"]
    assert experts.calls == []
    found, router, experts = asking([{"class": "red"}], Asked("walls"))
    assert router.calls == []
    assert experts.calls[0][:3] == ("answer", Source(run="r", session=2), "walls")
    assert experts.models == [f"{Source(run='r', session=2).key}/walls"]


@pytest.mark.parametrize(
    ("answers", "status", "words"),
    [
        (["classes: 'a' is there twice"], 422, "'a' is there twice"),
        ([BackPressureError(num_queued_requests=9, max_queued_requests=8)], 503, "wait already"),
        ([DeploymentUnavailableError("x")], 503, "no replica is there"),
        ([ActorDiedError()] * TRIES + [{"class": "red"}], 503, "replicas died over this"),
        (
            [RayTaskError("answer", "a traceback", UseError("r: another state")).as_instanceof_cause()],
            503,
            "^r: another state$",
        ),
        (
            [RayTaskError("answer", "a traceback", ArtifactError("/s/experts/c5: no artifact")).as_instanceof_cause()],
            503,
            "^what answers this cannot be read from storage any more",
        ),
        (  # prototypes are found by the training images, which are out of reach with all of storage
            [RayTaskError("answer", "a traceback", FileNotFoundError(2, "is gone", "/s/train")).as_instanceof_cause()],
            503,
            "^what answers this cannot be read from storage any more",
        ),
    ],
)
def test_what_goes_wrong_has_a_status_and_a_sentence(answers, status, words):
    with pytest.raises(RequestError, match=words) as refused:
        asking(answers, Asked())
    assert refused.value.status == status


def test_a_prediction_whose_replica_dies_is_made_again():
    assert asking([ActorDiedError(), ActorDiedError(), {"class": "red"}], Asked())[0] == {"class": "red"}


def test_nothing_else_is_tried_again():
    calls = []

    async def ask():
        calls.append(None)
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        asyncio.run(again(ask))
    assert len(calls) == 1


def test_a_swap_waits_for_all_replicas_and_nobody_waits_for_it():
    async def run():
        router, experts = Handle({"class": "red"}), Handle({"class": "red"})
        front = await front_of(router, experts)
        experts.gate = asyncio.Event()
        await front.reconfigure({"run": "r", "session": None})  # the last one, whose number the router finds
        await asyncio.sleep(0.05)
        assert front.about.source.session == 2  # experts have it not yet
        assert await front.predict(front.about, np.zeros((16, 16, 3), np.uint8), Asked()) == {"class": "red"}
        experts.gate.set()
        await asyncio.sleep(0.05)
        assert front.about.source.session == 3
        assert ("all", "prepare", Source(run="r", session=3)) in experts.calls
        assert ("all", "prepare", Source(run="r", session=3)) in router.calls

    asyncio.run(run())


def test_what_cannot_be_loaded_changes_nothing_and_the_next_swap_counts(caplog):
    async def run():
        front = await front_of(Handle({}), Handle({}))
        await front.reconfigure({"run": "r", "session": 9})
        await asyncio.sleep(0.05)
        assert front.about.source.session == 2
        assert "has committed 3 sessions, not 9" in caplog.text
        await front.reconfigure({"run": "r", "session": 3})
        await asyncio.sleep(0.05)
        assert front.about.source.session == 3

    asyncio.run(run())


def test_what_cannot_be_loaded_for_a_while_is_served_in_the_end(monkeypatch, caplog):
    monkeypatch.setattr(front_module, "FIRST_PAUSE", 0.02)

    async def run():
        router, experts = Handle({}), Handle({})
        front = await front_of(router, experts)
        router.gone = [OSError("storage does not answer"), OSError("nor now")]
        await front.reconfigure({"run": "r", "session": 3})
        for _ in range(100):
            await asyncio.sleep(0.02)
            if front.about.source.session == 3:
                return
        pytest.fail("the old session is served for good")

    asyncio.run(run())
    assert "storage does not answer; tried again in" in caplog.text


def test_a_front_that_cannot_load_at_its_start_says_so():
    with pytest.raises(ValueError, match="has committed 3 sessions, not 9"):
        asyncio.run(front_of(Handle({}), Handle({}), session=9))


def test_health_asks_both():
    async def run():
        router, experts = Handle({"class": "red"}), Handle({"class": "red"})
        front = await front_of(router, experts)
        await front.check()
        assert router.calls[-1][0] == experts.calls[-1][0] == "answer"
        experts.answers = [RuntimeError("no numbers")]
        with pytest.raises(RuntimeError, match="no numbers"):
            await front.check()

    asyncio.run(run())


def test_readiness_is_that_replicas_of_both_are_there():
    async def run():
        router, experts = Handle({"class": "red"}), Handle({"class": "red"})
        front = await front_of(router, experts)
        experts.answers.append(ActorDiedError())  # one of two
        router.gone = [DeploymentUnavailableError("x")]  # for a moment, as in a swap
        await front.ready()
        for gone, answers in (([DeploymentUnavailableError("x")] * 3, [None]), ([], [ActorDiedError()])):
            experts.gone, experts.answers = gone, answers
            with pytest.raises(RequestError, match="no replica of the experts is there") as refused:
                await front.ready()
            assert refused.value.status == 503

    asyncio.run(run())


def test_pictures_of_one_question_and_edition_share_a_batch():
    one, two = Source(run="r", session=1), Source(run="r", session=2)
    items = [(one, Asked(top_k=3), "a"), (two, Asked(), "b"), (one, Asked("walls"), "c"), (one, Asked(), "d")]
    assert list(same(items).values()) == [[0, 3], [1], [2]]


@pytest.mark.parametrize("patience", [60.0, -1.0])
def test_a_swap_is_tried_again_while_serve_shows_no_replicas(monkeypatch, caplog, patience):
    monkeypatch.setattr(front_module, "PATIENCE", patience)

    async def run():
        router, experts = Handle({"class": "red"}), Handle({"class": "red"})
        front = await front_of(router, experts)
        # As Ray Serve does for a moment with every deployment that gets new settings, which a swap begins with.
        router.gone, experts.gone = [DeploymentUnavailableError("x")], [ActorDiedError()]
        await front.reconfigure({"run": "r", "session": 3})
        for _ in range(40):
            await asyncio.sleep(0.05)
            if front.about.source.session == 3:
                break
        return front.about.source.session

    assert asyncio.run(run()) == (3 if patience > 0 else 2)
    assert ("is not served" in caplog.text) == (patience < 0)
