"""An expert that was fine-tuned by others' code alone: imported, merged, and as good as it was there."""

import io
import json
import shutil

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from condu_ray.benchmark.tasks import TaskError
from condu_ray.command_line import ConfigError
from condu_ray.commands.import_expert import _begun
from condu_ray.config import Experiment
from condu_ray.face.learning import evaluate
from condu_ray.methods.registry import MethodError
from condu_ray.options import Lora
from condu_ray.orchestration.run import write_config
from condu_ray.orchestration.state import ModelKeeper
from condu_ray.plan.imported import import_expert, takes_imported, with_expert
from condu_ray.plan.preflight import check
from condu_ray.plan.results import Results
from condu_ray.plan.run_plan import plan_run
from condu_ray.plan.stored_run import stored_run
from condu_ray.store.artifacts import file_hash, read_meta
from condu_ray.store.layout import expert_folder
from condu_ray.store.ledger import ROOT, Entry
from condu_ray.store.location import Location
from condu_ray.use.confusion import confusion
from condu_ray.use.peft import low_rank
from condu_ray.use.predictor import Predictor
from condu_ray.use.served import UseError, served_run
from condu_ray.vlm.model import backbone_spec, load_backbone
from tests.benchmark.ingest.forms import class_folders
from tests.conftest import give_label, write_task


def plain_loop(folder, task, path, steps=5):
    """Fine-tunes an open_clip model on a task by others' code alone; returns how many test images it has right."""
    torch.manual_seed(0)
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}", precision="fp32")
    words = open_clip.get_tokenizer(f"local-dir:{folder}", bpe_path=str(folder / "bpe_simple_vocab.txt.gz"))
    meta = json.loads((task / "meta.json").read_text())
    tokens = words([meta["template"].replace("{}", name) for name in meta["classes"]])

    def read(split):
        rows = pq.read_table(task / f"{split}.parquet").to_pydict()
        images = [transform(Image.open(io.BytesIO(image)).convert("RGB")) for image in rows["image"]]
        return torch.stack(images), torch.tensor(rows["label"])

    def scores(images):
        image, text = model.encode_image(images, normalize=True), model.encode_text(tokens, normalize=True)
        return model.logit_scale.exp() * image @ text.T

    optimizer, (images, labels) = torch.optim.AdamW(model.parameters(), lr=3e-4), read("train")
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(scores(images), labels).backward()
        optimizer.step()
    model.eval()
    torch.save({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, path)
    images, labels = read("test")
    with torch.no_grad():
        return int((scores(images).argmax(dim=1) == labels).sum())


@pytest.fixture(scope="session")
def outside(small_backbone, task_data, tmp_path_factory):
    """A checkpoint of the task `walls`, and how many test images it predicts rightly."""
    path = tmp_path_factory.mktemp("outside") / "walls.pt"
    return path, plain_loop(small_backbone, task_data / "walls", path)


@pytest.fixture
def config(tmp_path, task_data, small_backbone):
    training = {"steps": 2, "batch_size": 8, "precision": "fp32"}
    return Experiment.model_validate({
        "storage": tmp_path / "storage", "data": task_data, "pretrained": str(small_backbone), "run": "mine",
        "tasks": ("walls",), "training": training, "method": ("condu", "individual", "zero-shot"),
    })  # fmt: skip


@pytest.fixture
def backbone(small_backbone):
    return load_backbone(backbone_spec(pretrained=str(small_backbone)))


def merged(config):
    """Merges all that a run's plan has, where every expert is in storage; returns the plan."""
    plan, keeper = plan_run(check(config), "fp32"), ModelKeeper(config.absolute())
    assert all(expert.finished for expert in plan.experts)
    for method in plan.methods:
        for session in method.sessions:
            keeper.merge(method.method.name, session)
    return plan


def test_it_is_merged_and_decoded_as_good_as_its_own_loop_found_it(config, backbone, outside, task_data):
    path, correct = outside
    images = pq.read_metadata(task_data / "walls" / "test.parquet").num_rows
    key, _ = import_expert(config, backbone, "walls", path)
    run = with_expert(config, "walls", key)
    plan = merged(run)
    [expert] = plan.experts
    assert (expert.key, expert.task, expert.needs) == (key, "walls", None)
    [task] = plan.tasks
    zero_shot = evaluate(backbone, task, precision="fp32").correct
    assert zero_shot < correct <= images
    stored, state = stored_run(check(run)), torch.load(path, weights_only=True)["state_dict"]
    for name in ("condu", "individual"):
        method = stored.methods[name]
        delta = method.method.delta(method.state(-1), "walls", method.load)
        assert evaluate(backbone, task, delta, precision="fp32").correct == correct
        for parameter, tensor in backbone.snapshot().items():
            torch.testing.assert_close(tensor + delta[parameter], state[f"module.{parameter}"])
    assert [entry.expert for entry in stored.methods["zero-shot"].entries] == [None]
    served = confusion(Predictor.load(stored, method="condu", device="cpu"), task)
    assert (served.correct, served.experts) == (correct, {"walls": 1.0})


def test_methods_that_merge_loras_deltas_take_it_too(config, backbone, outside, task_data):
    path, correct = outside
    key, _ = import_expert(config, backbone, "walls", path)
    lora = {"method": ("condu-lora", "condu-svd-lora"), "lora": Lora(rank=4)}
    run = with_expert(config.model_copy(update=lora), "walls", key)
    [task] = merged(run).tasks
    method = stored_run(check(run)).methods["condu-lora"]
    delta = method.method.delta(method.state(-1), "walls", method.load)
    assert evaluate(backbone, task, delta, precision="fp32").correct == correct
    with pytest.raises(UseError, match="walls's expert came from elsewhere as a weight delta"):
        low_rank(served_run(stored_run(check(run)), "condu-lora"), "walls")


def test_the_same_weights_are_the_same_expert(config, backbone, outside, tmp_path):
    path, _ = outside
    key, _ = import_expert(config, backbone, "walls", path)
    state = torch.load(path, weights_only=True)["state_dict"]
    again = tmp_path / "other.pth"
    torch.save({name.removeprefix("module."): tensor for name, tensor in state.items()}, again)
    assert import_expert(config, backbone, "walls", again)[0] == key
    state["module.visual.proj"][0, 0] += 1
    torch.save(state, again)
    assert import_expert(config, backbone, "walls", again)[0] != key


def test_a_run_goes_on_with_it_and_what_it_had_stays(config, backbone, outside, tmp_path):
    """A second task from another folder, in another form; the first session keeps its identity."""
    path, _ = outside
    key, _ = import_expert(config, backbone, "walls", path)
    first = with_expert(config, "walls", key, methods=["condu"])
    before = merged(first)
    class_folders(tmp_path / "more" / "birds")
    second = with_expert(first, "birds", key, Location(tmp_path / "more"))  # any expert of this theta0 will do
    assert second.tasks == ("walls", "birds")
    plan = merged(second)
    assert [task.name for task in plan.tasks] == ["walls", "birds"]
    assert plan.methods[0].sessions[0].state == before.methods[0].sessions[0].state
    assert plan.tasks[1].folder.parent.name.startswith("birds-")
    assert len(stored_run(check(second)).methods["condu"].entries) == 2


def test_its_data_are_those_that_are_given_with_it_whatever_the_run_has_of_that_name(
    config, backbone, outside, tmp_path
):
    """Of a task that the run has learned, and of one that its folder has and nobody asked for."""
    key, _ = import_expert(config, backbone, "walls", outside[0])
    more = Location(tmp_path / "more")
    for name in ("walls", "doors"):
        write_task(tmp_path / "more" / name, ("red", "blue"), 5)
    for name in ("walls", "doors"):
        run = with_expert(config, name, key, more)
        assert run.task_data == {name: more}
        assert {task.name: task.folder for task in check(run).tasks}[name] == more / name
    assert with_expert(config, "walls", key, config.data) == with_expert(config, "walls", key)
    with pytest.raises(TaskError, match=r"task 'cars': .*more has none of that name"):
        with_expert(config, "cars", key, more)


def test_accuracies_that_its_prototypes_decide_are_measured_anew_where_its_images_are_others(
    config, backbone, outside, task_data, tmp_path
):
    key, _ = import_expert(config, backbone, "walls", outside[0])
    found = []
    for change in (False, True):
        data = tmp_path / f"data-{change}"
        shutil.copytree(task_data, data)
        if change:
            give_label(data / "walls" / "train.parquet", 0, 1)
        here = config.model_copy(update={"data": Location(data), "tasks": ("walls", "doors"), "method": ("condu",)})
        plan = plan_run(check(with_expert(here, "walls", key)), "fp32")
        [method] = plan.methods
        assert method.experts[0].key == key
        first = Entry(0, "walls", key, ROOT, method.sessions[0].state, 0.0)
        found.append({one.task: one.key for one in Results(plan).measurements(method, first)})
    assert found[0]["walls"] == found[1]["walls"]  # its task is known
    assert found[0]["doors"] != found[1]["doors"]


def test_of_an_adapters_two_files_that_is_recorded_which_was_read(config, backbone, tmp_path):
    module, ends = "visual.transformer.resblocks.0.mlp.c_fc", ("safetensors", "bin")
    out, inside = backbone.trainable[f"{module}.weight"].shape
    read, other = ({f"{module}.lora_A.weight": torch.full((1, inside), value), f"{module}.lora_B.weight":
                    torch.full((out, 1), value)} for value in (0.01, 0.02))  # fmt: skip
    paths = [tmp_path / "lora" / f"adapter_model.{end}" for end in ends]
    paths[0].parent.mkdir()
    save_file(read, paths[0])
    torch.save(other, paths[1])
    (tmp_path / "lora" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 1}')
    key, found = import_expert(config, backbone, "walls", tmp_path / "lora")
    assert float(found.delta[f"{module}.weight"].max()) == pytest.approx(1e-4)
    assert read_meta(expert_folder(config.storage, key))["imported"]["sha256"] == file_hash(paths[0])


def test_which_methods_take_it(config):
    from condu_ray.methods import METHODS, get

    takes = {name for name in METHODS if not takes_imported(get(name, config))}
    merges = {"average", "task-arithmetic", "ties", "dare", "consensus", "tsv-m", "iso-c", "opcm"}
    lora = {"condu-lora", "condu-sign-lora", "condu-svd-lora"}
    assert takes == {"condu", "condu-sign", "condu-svd", "emr", "individual", "zero-shot"} | merges | lora
    factors = Experiment.model_validate({"lora": {"merge": "factors"}})
    assert "a delta" in takes_imported(get("condu-lora", factors))


REFUSED = {
    "a method in a chain": (
        {"method": ("condu", "sequential")}, "walls", {}, MethodError, ["sequential cannot take", "--method condu"]
    ),
    "beside LoRA experts": (
        {"method": ("condu-svd-lora", "condu-svd"), "tasks": ("walls", "doors")}, "doors", {}, MethodError,
        ["condu-svd-lora cannot take", "adapters alone, and one from elsewhere is of all", "--method condu-svd"],
    ),
    "another method": ({}, "walls", {"methods": ["ties"]}, MethodError, ["ties: is none of the run's"]),
    "no data": ({}, "birds", {}, TaskError, ["birds: the run's data have no such task", "--data"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_is_refused_before_the_checkpoint_is_read(kind, config):
    change, task, more, error, words = REFUSED[kind]
    with pytest.raises(error) as caught:
        with_expert(config.model_copy(update=change), task, "", **more)
    assert [word for word in words if word not in str(caught.value)] == []


def test_no_lora_experts_are_trained_beside_it_by_a_run_that_had_it_alone(config, backbone, outside):
    """As by `add`: they would be trained, and then not be merged."""
    key, _ = import_expert(config, backbone, "walls", outside[0])
    change = {"method": ("condu-svd-lora",), "tasks": ("walls",), "lora": Lora(rank=2)}
    run = with_expert(config.model_copy(update=change), "walls", key)
    check(run)
    more = run.model_copy(update={"tasks": ("walls", "doors")})
    with pytest.raises(MethodError, match="condu-svd-lora cannot take the imported expert of walls: its own experts"):
        check(more)
    check(more, writes=False)  # of an earlier release, to be rolled back


def test_a_run_whose_expert_is_gone_or_of_another_theta0_is_refused(config, backbone, outside, tmp_path):
    key, _ = import_expert(config, backbone, "walls", outside[0])
    run = with_expert(config, "walls", key)
    with pytest.raises(TaskError, match=r"was imported for theta0 .* and the run has"):
        check(run.model_copy(update={"pretrained": None}))
    with pytest.raises(TaskError, match=r"walls=0123: storage has no such expert; .* condu-ray import"):
        check(with_expert(config, "walls", "0123"))
    with pytest.raises(TaskError, match=r"--imported wall: is no task of the run .*walls"):
        check(config.model_copy(update={"imported": {"wall": key}}))


def test_a_run_is_found_by_its_name_and_by_its_folder(config, tmp_path):
    write_config(config)
    found = _begun("mine", str(config.storage))
    assert (found.run, found.storage, found.method) == ("mine", config.storage, config.method)
    assert _begun(str(config.run_folder), None) == found
    assert _begun("another", str(config.storage)) is None
    with pytest.raises(ConfigError, match="no run's folder"):
        _begun(str(tmp_path / "none"), None)


def test_tasks_of_further_folders(config, task_data, small_backbone, tmp_path):
    write_task(tmp_path / "own" / "gates", ("red", "blue"), 5)
    write_task(tmp_path / "own" / "walls", ("red", "blue"), 6)
    more = config.model_copy(update={"more_data": (Location(tmp_path / "own"),), "tasks": None})
    assert [task.name for task in check(more).tasks] == ["walls", "doors", "cars", "gates"]
    found = check(more.model_copy(update={"tasks": ("gates", "walls")})).tasks
    assert [np.prod([len(task.classes)]) for task in found] == [2, 3]  # walls is that of the run's own data
    with pytest.raises(TaskError, match=r"no task 'gate' in --data or --more_data .*gates"):
        check(more.model_copy(update={"tasks": ("gate",)}))
