"""Pictures that want different experts in one forward pass: the same predictions, and no weight is swapped."""

from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest

from condu_ray import Predictor
from condu_ray.learn import features as features_module
from condu_ray.merging.codes.values import LowRankDeltas
from condu_ray.store.experts import load_expert
from condu_ray.use.pictures import pixels
from condu_ray.use.served import served_run
from condu_ray.vlm.preprocess import Preprocessor


@pytest.fixture
def served(found):
    """The last session of `condu-svd`, its codes with or without signs of the rest."""

    def made(bits=6.0, signs=False):
        one, model = served_run(found, "condu-svd"), LowRankDeltas.empty()
        for task, key in zip(one.state.tasks, one.state.experts, strict=True):
            model = model.unify(task, load_expert(found.config.storage, key), bits=bits, signs=signs)
        return replace(one, state=replace(one.state, model=model), load=partial(load_expert, found.config.storage))

    return made


def pictures(found, count=4):
    return [image for task in found.tasks for image in pq.read_table(task.test)["image"].to_pylist()[:count]]


def test_the_predictions_are_those_of_swapped_weights(found, served, monkeypatch):
    images, swapped = pictures(found), []
    expected = Predictor(served()).predict(images)
    together = Predictor(served(), at_once=True)
    together.predict(images)  # prompts are encoded by whole experts, once
    original = features_module.set_weights
    monkeypatch.setattr(features_module, "set_weights", lambda *about: swapped.append(about) or original(*about))
    found = together.predict(images)
    assert len(swapped) <= 1  # back to theta0, where an expert's prompts came last
    assert len({task for one in found for task, share in one.experts.items() if share > 0.1}) > 1
    for one, other in zip(found, expected, strict=True):
        assert one.classes == other.classes
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
        assert one.experts == pytest.approx(other.experts, abs=1e-5)
    swapped.clear()
    assert together.predict(images) == found
    assert not swapped
    read = np.stack([pixels(one, Preprocessor(together.served.backbone.spec.preprocess)) for one in images])
    here = together.prepared(read, together.question(), ask=lambda wanted: pytest.fail("experts elsewhere are asked"))
    assert [replace(one, image=other.image) for one, other in zip(here, found, strict=True)] == found


def test_what_has_no_low_rank_is_swapped_as_ever(found, served):
    images = pictures(found, 2)
    with_signs = served(bits=1.6, signs=True)
    assert with_signs.method.low_rank(with_signs.state, "walls") is None
    assert Predictor(with_signs, at_once=True).predict(images) == Predictor(served(1.6, True)).predict(images)
    condu = partial(served_run, found, "condu")
    assert Predictor(condu(), at_once=True).predict(images) == Predictor(condu()).predict(images)
