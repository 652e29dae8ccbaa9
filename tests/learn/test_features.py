"""Features: computed once, kept while there is room, and the same with and without."""

import numpy as np
import pytest
import torch

from condu_ray.benchmark import load_task
from condu_ray.benchmark.rows import sample
from condu_ray.learn import decoded
from condu_ray.learn import features as module
from condu_ray.learn.features import PRETRAINED, FeatureError, Features, Weights
from condu_ray.store.artifacts import ArtifactError
from condu_ray.vlm.model import backbone_spec, load_backbone


@pytest.fixture
def make(small_backbone):
    def new(**options):
        backbone = load_backbone(backbone_spec(pretrained=str(small_backbone)))
        settings = {"batch_size": 7, "max_images": 0, "precision": "fp32", "device": "cpu"}
        return Features(backbone, **settings | options)

    return new


@pytest.fixture
def tasks(task_data):
    return [load_task(task_data / name) for name in ("walls", "doors", "cars")]


def weights(features, seed):
    generator = torch.Generator().manual_seed(seed)
    delta = {name: 0.3 * torch.randn(t.shape, generator=generator) for name, t in features.theta0.items()}
    return Weights(f"w{seed}", lambda: delta)


@pytest.fixture
def counted(monkeypatch):
    """Counts images and class sets that go through the model, and placements of weights."""
    counts = {"images": 0, "texts": 0, "placed": 0}
    originals = {name: getattr(module, name) for name in ("image_features", "text_features", "set_weights")}

    def images(model, pixels):
        counts["images"] += len(pixels)
        return originals["image_features"](model, pixels)

    def texts(*arguments):
        counts["texts"] += 1
        return originals["text_features"](*arguments)

    def place(*arguments):
        counts["placed"] += 1
        return originals["set_weights"](*arguments)

    monkeypatch.setattr(module, "image_features", images)
    monkeypatch.setattr(module, "text_features", texts)
    monkeypatch.setattr(module, "set_weights", place)
    return counts


def test_each_is_computed_once(make, tasks, counted):
    features = make()
    one, other = weights(features, 1), weights(features, 2)
    first = [features.image(w, tasks[0]) for w in (one, other, one, other)]
    texts = [features.text(w, tasks[0]) for w in (one, other, one, other)]
    assert counted["images"] == 2 * tasks[0].test_rows
    assert counted["texts"] == 2
    for kind in (first, texts):
        assert torch.equal(kind[0], kind[2])
        assert torch.equal(kind[1], kind[3])
        assert not torch.allclose(kind[0], kind[1], atol=1e-2)
    other = features.image(one, tasks[0], precision="bf16")  # another precision is another measurement
    assert counted["images"] == 3 * tasks[0].test_rows
    assert 0 < (other - first[0]).abs().max() < 0.1
    words = features.text(one, tasks[0], precision="bf16")
    assert 0 < (words - texts[0]).abs().max() < 0.1
    own = make(precision="bf16")
    assert torch.equal(own.image(one, tasks[0]), other)
    assert torch.equal(own.text(one, tasks[0]), words)


def test_weights_are_placed_only_when_their_name_changes(make, tasks, counted):
    features = make()
    one = weights(features, 1)
    features.image(PRETRAINED, tasks[0])
    assert counted["placed"] == 0  # they are there from the start
    for task in tasks:
        features.image(one, task)
        features.text(one, task)
    assert counted["placed"] == 1
    features.text(Weights("w1", lambda: pytest.fail("equal names are equal weights")), tasks[0])
    features.image(PRETRAINED, tasks[1])
    assert counted["placed"] == 2


def test_rows_are_filled_in_as_they_are_wanted(make, tasks, counted, monkeypatch):
    features, task = make(), tasks[0]
    one, count = weights(features, 1), task.test_rows
    expected = make().image(one, task)
    counted["images"] = 0
    rows = torch.arange(count)
    monkeypatch.setattr(module, "LEAST", 1)
    for wanted, new in ((rows % 3 == 0, 8), (rows % 2 == 0, 8), (rows % 3 == 0, 0), (rows < 6, 2)):
        found = features.image(one, task, wanted)
        assert torch.allclose(found[wanted], expected[wanted], atol=1e-6)
        assert counted["images"] == new
        counted["images"] = 0
    assert features._bytes == found.nbytes  # one and the same tensor, kept four times
    assert torch.isnan(found[7]).all()  # nobody wanted it yet
    assert torch.allclose(features.image(one, task), expected, atol=1e-6)
    assert counted["images"] == 6


def test_images_that_nobody_asked_for_end_nothing(make, tasks, monkeypatch):
    """Those that are encoded beside few, so that these are rounded alike."""
    features = make()
    one, encode = weights(features, 1), features.encode

    def encoded(*arguments):
        found = encode(*arguments)
        found[3, 1] = torch.nan
        return found

    monkeypatch.setattr(features, "encode", encoded)
    wanted = torch.arange(tasks[0].test_rows) == 0
    found = features.image(one, tasks[0], wanted)
    assert found[:5].isnan().all(dim=1).tolist() == [False, False, False, True, False]
    with pytest.raises(FeatureError, match="task walls"):
        features.image(one, tasks[0])


@pytest.mark.parametrize("factor", [1e30, float("nan")])
@pytest.mark.parametrize("storage", [False, True])
def test_features_that_are_no_numbers_are_refused_and_not_kept(make, tasks, factor, storage, tmp_path):
    features = make(storage=tmp_path, keep_experts=True) if storage else make()
    delta = {name: torch.full_like(tensor, factor) for name, tensor in features.theta0.items()}
    large = Weights("state/walls", lambda: delta)
    for _ in range(2):
        with pytest.raises(FeatureError, match=r"task walls: features by state/walls are NaN.*lora\.scale"):
            features.image(large, tasks[0])
        with pytest.raises(FeatureError, match=r"classes .* NaN"):
            features.text(large, tasks[0])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_one_class_that_is_no_numbers_is_enough(make, tasks):
    features = make()
    table = torch.zeros_like(features.theta0["token_embedding.weight"])
    table[features.backbone.tokenizer([tasks[0].classes[1]])[0, 1]] = torch.nan
    with pytest.raises(FeatureError, match="NaN"):
        features.text(Weights("w", lambda: {"token_embedding.weight": table}), tasks[0])


def test_max_images_takes_a_sample(make, tasks):
    few, every = make(max_images=10), make()
    rows = sample(every.labels(tasks[0]).numpy(), 10)
    assert torch.allclose(few.image(PRETRAINED, tasks[0]), every.image(PRETRAINED, tasks[0])[rows], atol=1e-6)
    assert torch.equal(few.labels(tasks[0]), every.labels(tasks[0])[rows])
    assert len(make(max_images=1000).labels(tasks[0])) == tasks[0].test_rows


def test_beyond_the_limit_what_was_used_longest_ago_goes_first(make, tasks, counted, monkeypatch):
    features = make()
    one, two, three = (weights(features, seed) for seed in (1, 2, 3))
    size = features.text(one, tasks[0]).nbytes
    monkeypatch.setattr(module, "FEATURE_BYTES", 2 * size)
    expected = {w.name: features.text(w, tasks[0]) for w in (one, two)}
    features.text(one, tasks[0])
    features.text(three, tasks[0])  # two has to go
    assert sum(kept.nbytes for kept in features._kept.values()) == features._bytes <= 2 * size
    counted["texts"] = 0
    assert torch.equal(features.text(one, tasks[0]), expected["w1"])
    assert counted["texts"] == 0
    assert torch.equal(features.text(two, tasks[0]), expected["w2"])
    assert counted["texts"] == 1


def test_nothing_is_kept_beyond_the_limits_and_the_result_is_the_same(make, tasks, monkeypatch):
    expected, tight = make(), make()
    monkeypatch.setattr(module, "FEATURE_BYTES", 1)
    monkeypatch.setattr(decoded, "PIXEL_BYTES", 100)
    monkeypatch.setattr(decoded, "SPARE_BYTES", 2**62)
    for weight in (PRETRAINED, weights(tight, 1), PRETRAINED):
        for task in tasks:
            every, wanted = expected.image(weight, task), torch.arange(task.test_rows) % 2 == 0
            assert torch.allclose(tight.image(weight, task, wanted)[wanted], every[wanted], atol=1e-6)
            assert torch.allclose(tight.image(weight, task), every, atol=1e-6)
            assert torch.equal(tight.text(weight, task), expected.text(weight, task))
            assert len(tight._kept) == 1


def test_weights_that_fit_only_in_part_are_not_taken_for_those_before(make, tasks):
    features = make()
    good = weights(features, 1)
    features.text(good, tasks[0])
    *_, last = features.theta0
    broken = weights(features, 2).delta() | {last: torch.zeros(3, 3, 3, 3)}
    with pytest.raises(RuntimeError):
        features.image(Weights("broken", lambda: broken), tasks[0])
    assert torch.equal(features.text(good, tasks[1]), make().text(good, tasks[1]))
    assert torch.equal(features.text(PRETRAINED, tasks[0]), make().text(PRETRAINED, tasks[0]))


def test_theta0_is_encoded_once_for_all_evaluators_of_a_storage(make, tasks, counted, tmp_path):
    first = make(storage=tmp_path)
    some = torch.arange(tasks[0].test_rows) % 2 == 0
    images, texts = first.image(PRETRAINED, tasks[0], some), first.text(PRETRAINED, tasks[0])
    assert not images.isnan().any()  # what is stored is whole
    assert torch.equal(images, make().image(PRETRAINED, tasks[0]))
    counted.update(dict.fromkeys(counted, 0))
    again = make(storage=tmp_path)
    assert torch.equal(again.image(PRETRAINED, tasks[0], some), images)
    assert torch.equal(again.text(PRETRAINED, tasks[0]), texts)
    assert counted == {"images": 0, "texts": 0, "placed": 0}
    again.image(PRETRAINED, tasks[0], precision="bf16")
    again.image(weights(again, 1), tasks[0])
    again.image(PRETRAINED, tasks[1])
    make(storage=tmp_path, max_images=3).image(PRETRAINED, tasks[0])
    assert counted["images"] == 2 * tasks[0].test_rows + tasks[1].test_rows + 3  # each is something else
    assert len(list(tmp_path.glob("features/*"))) == 5  # and what is not theta0's is not stored


def test_damaged_features_are_named_and_not_used(make, tasks, tmp_path):
    make(storage=tmp_path).image(PRETRAINED, tasks[0])
    (path,) = tmp_path.glob("features/*/features.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=path.parent.name):
        make(storage=tmp_path).image(PRETRAINED, tasks[0])


@pytest.fixture
def few(monkeypatch):
    """Kernels for few images round otherwise than those for a batch; here by 1, on every machine."""
    monkeypatch.setattr(
        module, "image_features", lambda model, images: images.flatten(1)[:, :4] + (len(images) < module.LEAST)
    )


@pytest.mark.parametrize("wanted", [1, 3, 15, 16, 20])
def test_what_an_image_is_does_not_depend_on_how_many_are_wanted(make, few, wanted):
    features = make(batch_size=40)
    pixels = np.random.default_rng(0).integers(0, 256, (40, *features.backbone.spec.image_size, 3), dtype=np.uint8)
    rows = np.isin(np.arange(40), np.random.default_rng(wanted).permutation(40)[:wanted])
    chosen = module.enough(rows)
    assert chosen[rows].all()
    assert chosen.sum() == max(wanted, module.LEAST)
    found = features.encode(PRETRAINED, pixels[chosen])
    assert torch.equal(found, features.encode(PRETRAINED, pixels)[chosen])
    assert module.enough(rows[:5] | True).sum() == 5  # a batch that is no larger


def test_features_are_the_same_bits_whatever_was_wanted_before(make, few, tasks):
    expected = make(batch_size=20).image(PRETRAINED, tasks[0])
    features = make(batch_size=20)
    rows = torch.arange(tasks[0].test_rows)
    for wanted in (rows == 5, rows % 7 == 2, rows >= 0):
        found = features.image(PRETRAINED, tasks[0], wanted)
    assert torch.equal(found, expected)
