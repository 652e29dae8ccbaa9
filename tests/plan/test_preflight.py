"""Bad input is refused by name before Ray starts."""

import json
import shutil
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from condu_ray.benchmark import TaskError
from condu_ray.benchmark.mini_mtil.draw import MINI_MTIL_TASKS, mini_mtil
from condu_ray.benchmark.orders import draw_orders
from condu_ray.config import Cluster, Experiment, Sweep
from condu_ray.learn.prototype_store import prototype_key
from condu_ray.methods import METHODS
from condu_ray.methods.registry import MethodError
from condu_ray.options import Inference
from condu_ray.plan import data, preflight
from condu_ray.plan.preflight import check, check_trials
from condu_ray.plan.results import Results
from condu_ray.plan.run_plan import plan_run
from condu_ray.plan.trials import make_trials
from condu_ray.store.artifacts import ArtifactError
from condu_ray.store.ledger import Entry
from condu_ray.vlm.lora import LoraError
from condu_ray.vlm.model import BackboneError


@pytest.fixture
def settings(tmp_path, task_data, small_backbone):
    return {"storage": tmp_path / "storage", "data": task_data, "pretrained": str(small_backbone)}


def test_nothing_is_made_anew_where_storage_has_gone_meanwhile(settings, monkeypatch):
    """As under a server that looks for a newer state: the folder would be in the way of moving it back."""
    storage = settings["storage"]
    storage.mkdir()
    load = preflight.load_backbone
    monkeypatch.setattr(preflight, "load_backbone", lambda spec: (storage.rename(f"{storage}-moved"), load(spec))[1])
    with pytest.raises(ArtifactError, match="is not there any more"):
        check(Experiment(**settings), writes=False)
    assert not storage.exists()


def test_a_tokenizer_of_hugging_faces_is_known_to_the_plan(settings, monkeypatch):
    config = Experiment(**settings, method=("lwf-vr", "condu"))
    keys = []
    for foreign in (False, True):
        if foreign:
            monkeypatch.setattr("condu_ray.plan.preflight.foreign", lambda tokenizer: True)
        found = check(config)
        assert found.foreign is foreign
        keys.append([[expert.key for expert in one.experts] for one in plan_run(found, "fp32").methods])
    assert keys[0][0] != keys[1][0]
    assert keys[0][1] == keys[1][1]


def test_a_text_tower_that_leaves_units_out_is_known_to_the_plan(settings, monkeypatch):
    config = Experiment(**settings, training={"accumulate": 2})
    keys = []
    for drops_out in (False, True):
        if drops_out:
            monkeypatch.setattr("condu_ray.plan.preflight.drops_out", lambda model: True)
        found = check(config)
        assert found.drops_out is drops_out
        keys.append({expert.key for expert in plan_run(found, "fp32").experts})
    assert not keys[0] & keys[1]


def test_good_input_passes_and_its_verdict_is_kept(settings):
    found = check(Experiment(**settings))
    assert [task.name for task in found.tasks] == ["walls", "doors", "cars"]
    assert len(list((settings["storage"] / "checked").iterdir())) == 3 + 3 + 1  # data, the backbone on them, training
    assert check(Experiment(**settings)).backbone == found.backbone


@pytest.fixture(scope="module")
def drawing(tmp_path_factory):
    """Storage in which a task of mini-MTIL is drawn once, with few images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("condu_ray.plan.data.mini_mtil", partial(mini_mtil, train_per_class=4, test_per_class=2))
        yield tmp_path_factory.mktemp("drawing")


def test_options_that_change_nothing_are_told_of(settings, drawing, tmp_path):
    def said(**given):
        return " ".join(check(Experiment(storage=drawing, **given)).words)

    drawn = {"tasks": ("digits",), "pretrained": settings["pretrained"]}
    assert "--template: changes nothing" in said(**drawn, template="a drawing of a {}.")
    assert "--test_share: changes nothing" in said(**drawn, test_share=0.5)
    assert "changes nothing" not in said(**drawn)
    photos = tmp_path / "photos"  # class folders, which have no prompts
    for number, name in enumerate(("cat", "dog")):
        (photos / name).mkdir(parents=True)
        for index in range(4):
            Image.new("RGB", (8, 8), (60 * index, 90 * number, 9)).save(photos / name / f"{index}.png")
    assert "changes nothing" not in said(**drawn, template="a drawing of a {}.", probe=(photos,))


def test_experts_that_are_never_candidates_are_told_of(settings):
    def said(method, **given):
        words = check(Experiment(**settings, method=method, inference=Inference(top_k=1, **given))).words
        return " ".join(word for word in words if "top_k" in word)

    assert "no expert of condu is asked" in said(("condu", "condu-svd"))  # the other has a mixture
    assert said(("condu",), include_pretrained=False) == said(("condu-svd",)) == said(("individual",)) == ""


@pytest.mark.parametrize(
    ("above", "flags", "left"),
    [(0, {}, 3), (144, {}, 0), (143, {}, 3), (0, {"shots": 2}, 0), (0, {"validation_share": 0.25}, 0)],
)  # fmt: skip
def test_many_images_are_left_to_the_cluster(settings, above, flags, left):
    config = Experiment(**settings, **flags, cluster=Cluster(check_above=above))
    assert len(check(config, later=True).unchecked) == left
    if left:
        assert check(config).unchecked == check(config, later=True).unchecked == ()  # their verdicts are known now


def test_data_in_another_form_are_tasks_like_any_other(settings, tmp_path, capsys):
    for task in check(Experiment(**settings)).tasks:
        for split in (task.train, task.test):
            for row, one in enumerate(pq.read_table(split).to_pylist()):
                path = tmp_path / "trees" / task.name / split.stem / task.classes[one["label"]] / f"{row}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(one["image"])
    config = Experiment(**(settings | {"data": tmp_path / "trees", "tasks": ("walls", "doors"), "shots": 2}))
    found = check(config)
    assert [(task.name, task.train_rows) for task in found.tasks] == [("walls", 6), ("doors", 4)]
    assert "24 train and 24 test images of 3 classes" in capsys.readouterr().out
    assert check(config).tasks == found.tasks
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"method": ("condo",)}, MethodError, ["condo", "did you mean condu"]),
        ({"tasks": ("walls", "door")}, TaskError, ["door", "doors"]),
        ({"data": "no/such/folder"}, TaskError, ["no/such/folder"]),
        ({"data": None, "tasks": ("cifar100",)}, TaskError, ["cifar100", "mini-MTIL", "--data"]),
        ({"pretrained": "no/such/weights"}, BackboneError, ["no/such/weights"]),
        ({"model": "ViT-B-61", "pretrained": "openai"}, BackboneError, ["ViT-B-61", "ViT-B-16"]),
    ],
)
def test_what_is_wrong_is_named(settings, change, error, words):
    with pytest.raises(error) as caught:
        check(Experiment(**(settings | change)))
    for word in words:
        assert word in str(caught.value)


def test_storage_that_is_a_file_is_named(settings, tmp_path):
    (tmp_path / "storage").write_text("")
    with pytest.raises(ArtifactError, match="--storage"):
        check(Experiment(**settings))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"template": "a " * 20 + "{}."}, TaskError, "more tokens than the 12"),
        ({"method": "condu-lora", "lora": {"rank": 33}}, LoraError, "rank 33"),
    ],
)
def test_what_a_second_shows_is_not_found_after_all_images(settings, task_data, tmp_path, change, error, words):
    told = []
    if template := change.pop("template", None):
        settings |= {"data": shutil.copytree(task_data, tmp_path / "data")}
        meta = settings["data"] / "cars" / "meta.json"
        meta.write_text(json.dumps(json.loads(meta.read_text()) | {"template": template}))
    with pytest.raises(error, match=words):
        check(Experiment(**(settings | change)), told.append)
    assert not told  # of images that are decoded
    check(Experiment(**(settings | {"data": task_data})), told.append)
    assert len(told) == 3


def test_bad_labels_are_found_before_anything_is_trained(settings, tmp_path, task_data):
    shutil.copytree(task_data, tmp_path / "data")
    meta = tmp_path / "data" / "cars" / "meta.json"
    content = json.loads(meta.read_text())
    meta.write_text(json.dumps(content | {"classes": content["classes"][:-1]}))
    with pytest.raises(TaskError, match="cars") as caught:
        check(Experiment(**(settings | {"data": tmp_path / "data"})))
    assert "train.parquet" in str(caught.value)
    assert "label" in str(caught.value)


def test_mini_mtil_is_drawn_where_no_data_is_given(drawing):
    found = check(Experiment(storage=drawing, tasks=("digits",)))
    assert [task.name for task in found.tasks] == ["digits"]


def test_prototypes_are_of_the_shots_or_of_all_images_that_they_were_drawn_from(settings):
    whole, few = (check(Experiment(**settings, shots=shots)) for shots in (None, 2))
    assert few.pictured("all") == whole.tasks == whole.pictured("all") == whole.pictured("training")
    assert few.pictured("training") == few.tasks
    for all_images, shots in zip(whole.tasks, few.tasks, strict=True):
        own, shared = (prototype_key("theta0", shots, images) for images in ("training", "all"))
        assert own != shared == prototype_key("theta0", all_images)


def test_shots_are_drawn_and_move_the_experts(settings):
    whole, few = (check(Experiment(**settings, shots=shots)) for shots in (None, 2))
    assert [task.train_rows for task in few.tasks] == [2 * len(task.classes) for task in whole.tasks]
    assert [task.test_fingerprint for task in few.tasks] == [task.test_fingerprint for task in whole.tasks]
    one, other = (plan_run(found, "fp32").experts for found in (whole, few))
    assert {expert.key for expert in one}.isdisjoint({expert.key for expert in other})


def test_held_out_images_move_the_experts_and_what_is_measured_and_are_in_no_prototype(settings):
    held = settings | {"validation_share": 0.25, "evaluation": {"max_images": 3}}
    ways = {
        "whole": settings | {"evaluation": {"max_images": 3}},
        "test": held,
        "validation": held | {"measure_on": "validation"},
        "other": held | {"validation_seed": 1},
        "few": held | {"measure_on": "validation", "shots": 2},
    }
    found = {name: check(Experiment(**way)) for name, way in ways.items()}
    plans = {name: plan_run(checked, "fp32") for name, checked in found.items()}
    experts = {name: [one.key for one in plan.methods[0].experts] for name, plan in plans.items()}
    assert experts["test"] == experts["validation"]  # chosen on validation, then tested as it is
    assert all(len({experts[name][i] for name in experts}) == len(experts) - 1 for i in range(3))
    measured = {}
    for name, plan in plans.items():
        session = plan.methods[0].sessions[0]
        entry = Entry(0, session.task, session.expert.key, session.parent, session.state, 0.0)
        measured[name] = [one.key for one in Results(plan).measurements(plan.methods[0], entry)]
    assert all(len({measured[name][i] for name in measured}) == len(measured) for i in range(3))
    prototypes = {name: [prototype_key("theta0", task) for task in found[name].tasks] for name in ("whole", "test")}
    assert not set(prototypes["whole"]) & set(prototypes["test"])
    of_all = [prototype_key("theta0", task, "all") for task in found["few"].tasks]
    assert of_all == prototypes["test"]
    assert [task.train_rows for task in found["test"].tasks] == [18, 12, 24]
    assert [task.test_rows for task in found["validation"].tasks] == [6, 4, 8]
    assert any("measured on validation images" in line for line in found["validation"].words)
    assert not any("held out" in line for line in found["whole"].words)


@pytest.fixture
def references(tmp_path, task_data):
    """Reference files of every kind, good and bad, below `tmp_path`; the good one is `good.parquet`."""
    images = pq.read_table(task_data / "cars" / "train.parquet", columns=["image"])
    captions = pa.array([f"picture {row}" for row in range(len(images))])
    pq.write_table(images.append_column("caption", captions), tmp_path / "good.parquet")
    pq.write_table(images, tmp_path / "mute.parquet")
    pq.write_table(pa.table({"caption": captions}), tmp_path / "blind.parquet")
    pq.write_table(pa.table({"image": captions, "caption": captions}), tmp_path / "paths.parquet")
    (tmp_path / "text.parquet").write_text("no table")
    (tmp_path / "one.txt").write_text("a picture\n\n  a picture  \n")
    (tmp_path / "two.txt").write_text("a picture\nanother\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({}, MethodError, ["--method zscl", "--distillation.reference", "image and caption", "not one of the tasks"]),
        ({"reference": "{data}/walls"}, MethodError, ["walls", "one of the tasks"]),
        ({"reference": "{data}/../data-again/doors"}, MethodError, ["doors", "one of the tasks"]),
        ({"reference": "{here}/good.parquet,{data}/cars/test.parquet"}, MethodError, ["cars", "one of the tasks"]),
        ({"reference": "{here}/nothing.parquet"}, TaskError, ["nothing.parquet", "missing"]),
        ({"reference": "{here}/text.parquet"}, TaskError, ["text.parquet", "not Parquet"]),
        ({"reference": "{here}/empty"}, TaskError, ["empty", "no task folder", "meta.json"]),
        ({"reference": "{here}/blind.parquet"}, TaskError, ["blind.parquet", "column 'image' is missing", "caption"]),
        ({"reference": "{here}/paths.parquet"}, TaskError, ["paths.parquet", "'image' holds string", "bytes"]),
        (
            {"reference": "{here}/mute.parquet"},
            TaskError,
            ["mute.parquet", "fewer than two", "--distillation.captions"],
        ),
        (
            {"reference": "{here}/good.parquet", "captions": "{here}/one.txt"},
            TaskError,
            ["one.txt", "fewer than two", "one a line"],
        ),
        ({"reference": "{here}/good.parquet", "captions": "{here}/no.txt"}, TaskError, ["captions", "no.txt"]),
        ({"reference": "{here}/good.parquet", "captions": "{here}/bytes.txt"}, TaskError, ["bytes.txt", "as text"]),
    ],
)
def test_references_that_zscl_cannot_use_are_named(settings, task_data, references, change, error, words):
    (task_data.parent / "data-again").exists() or (task_data.parent / "data-again").symlink_to(task_data)
    distillation = {key: value.format(data=task_data, here=references) for key, value in change.items()}
    with pytest.raises(error) as caught:
        check(Experiment(**settings, method="condu,zscl", distillation=distillation))
    for word in words:
        assert word in str(caught.value)
    check(Experiment(**settings, method="condu,lwf", distillation=distillation))  # who needs none does not look


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            {"method": "individual", "label_space": "union"},
            MethodError,
            ["--protocol union", "individual", "such as condu"],
        ),
        (
            {"method": "condu,lwf", "training": {"accumulate": 2, "batch_size": 8}},
            MethodError,
            ["--training.accumulate 2", "lwf", "--training.recompute"],
        ),
        *[
            (
                {"method": f"condu,{adding}", "training": {"batch_size": 4, "workers": 4}},
                MethodError,
                [f"--method {adding}", "workers 4", "--distillation.batch_size 8"],
            )
            for adding in ("lwf", "lwf-vr", "zscl", "icarl", "rehearsal")
        ],
        ({"method": "individual", "protocol": "task,own"}, MethodError, ["--protocol own", "individual"]),
        ({"method": "condu,individual", "protocol": "own,xtail"}, MethodError, ["individual", "own,xtail", "task"]),
        ({"method": "condu-lora", "lora": {"rank": 33}}, LoraError, ["rank 33", "1 to 32"]),
        ({"method": "condu,pam", "lora": {"rank": 33}}, LoraError, ["rank 33"]),
    ],
)
def test_options_that_cannot_work_are_named_with_what_would(settings, change, error, words):
    with pytest.raises(error) as caught:
        check(Experiment(**settings, **change))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"method": "individual,zero-shot", "label_space": "union"},
        {"method": "condu", "lora": {"rank": 33}},
        {"method": "pam-full", "lora": {"rank": 33}},
        {"method": "pam", "pam": {"adapter": "full"}, "lora": {"rank": 33}},
        {"method": "pam", "lora": {"rank": 32}},
        {"method": "condu,sequential", "training": {"batch_size": 4, "workers": 4}},
        {"method": "lwf", "training": {"batch_size": 4, "workers": 4}, "distillation": {"second_batch": False}},
    ],
)
def test_an_option_that_no_method_uses_harms_nobody(settings, change):
    check(Experiment(**settings, **change))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ("distillation.reference={here}/good.parquet,{data}/walls", MethodError, ["walls", "one of the tasks"]),
        ("distillation.reference={here}/good.parquet,nothing.parquet", TaskError, ["nothing.parquet", "missing"]),
        ("distillation.captions={here}/two.txt,{here}/one.txt", TaskError, ["one.txt", "fewer than two"]),
    ],
)
def test_references_of_a_sweeps_trials_are_looked_at(settings, task_data, references, change, error, words):
    base = Sweep(
        **settings, method="condu,zscl", distillation={"reference": str(references / "good.parquet")},
        sweep=(change.format(data=task_data, here=references),),
    )  # fmt: skip
    checked = check(base.experiment())
    trials = make_trials(base, draw_orders(("walls", "doors", "cars"), 1, 0))
    with pytest.raises(error) as caught:
        check_trials(checked, [trial.config(checked.config, "check") for trial in trials])
    assert all(word in str(caught.value) for word in words)


def test_with_references_every_method_can_be_planned(settings, references, monkeypatch):
    monkeypatch.chdir(references)
    given = {"reference": "good.parquet,mute.parquet", "captions": "two.txt"}
    checked = check(Experiment(**settings, method=tuple(METHODS), distillation=given, lora={"rank": 4}))
    assert [plan.method.name for plan in plan_run(checked, "fp32").methods] == list(METHODS)
    found = checked.config.distillation  # absolute, for a worker works in another folder
    assert [Path(one) for one in found.reference] == [references / "good.parquet", references / "mute.parquet"]
    assert str(found.captions) == str(references / "two.txt")


def test_mini_mtil_distils_on_those_of_its_tasks_that_are_not_learned(settings, task_data, monkeypatch, tmp_path):
    drawn = []

    def draw(folder, tasks):
        for name in tasks:
            drawn.append(name)
            shutil.copytree(task_data / "walls", folder / name, dirs_exist_ok=True)

    for module in (preflight, data):  # references, and tasks
        monkeypatch.setattr(module, "mini_mtil", draw)
    monkeypatch.chdir(tmp_path)
    base = settings | {"data": None, "storage": "storage", "method": "zscl"}
    learned = MINI_MTIL_TASKS[2:4]
    found = check(Experiment(**base, tasks=learned)).config.distillation.reference
    assert [path.name for path in found] == [name for name in MINI_MTIL_TASKS if name not in learned]
    assert all(Path(path).is_absolute() and Path(path).is_dir() for path in found)
    assert sorted(drawn) == sorted(MINI_MTIL_TASKS)
    with pytest.raises(MethodError, match="needs reference images"):
        check(Experiment(**base, tasks=MINI_MTIL_TASKS))
