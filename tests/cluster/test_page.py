"""`cluster/README.md` against what it speaks of."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import sizing
import with_room
from consistency import NODE_LABELS, SECRET_ENVIRONMENTS, SECRETS
from entry_points import resources, settings
from places import BUCKET, KUBERNETES, MOUNT, ROOT
from rendering import applied

PAGE = (ROOT / "cluster" / "README.md").read_text()
COMMANDS = "\n".join(re.findall(r"^```\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")


def test_the_table_is_what_the_script_prints(capsys):
    assert sizing.main([]) == 0
    assert capsys.readouterr().out in PAGE


def test_every_folder_that_is_applied_is_there():
    named = set(re.findall(r"-k (cluster/\S+)", COMMANDS))
    assert len(named) >= 6
    assert {ROOT / name for name in named} <= set(applied(KUBERNETES))
    for name in re.findall(r"`(cluster/[^`\s]+|jobs/\w+\.py)`", PAGE):
        assert (ROOT / name.rstrip(":")).exists(), name


def test_files_to_be_edited_are_there():
    for name in re.findall(r"`((?:nodes|base|services|parts|jobs)/[\w/-]+\.yaml)`", PAGE):
        assert (KUBERNETES / name).is_file(), name
    changed = re.search(r"sed -i 's#(.*?)#.*' cluster/kubernetes/\{(.*?)\}/kustomization.yaml", COMMANDS)
    files = {KUBERNETES / part / "kustomization.yaml" for part in changed[2].split(",")}
    assert files == {path for path in KUBERNETES.rglob("kustomization.yaml") if changed[1] in path.read_text()}


def test_secrets_are_made_on_the_page():
    made = dict(re.findall(r"create secret generic (\S+) --from-literal=(\w+)=", COMMANDS))
    assert made == {name: next(iter(keys)) for name, keys in SECRETS.items()}
    files = re.findall(r"create secret generic (\S+) --from-env-file=(\S+)", COMMANDS)
    assert {name for name, _ in files} == SECRET_ENVIRONMENTS
    assert "AWS_ACCESS_KEY_ID" in PAGE


def test_the_bucket_s_name_is_changed_wherever_it_is():
    changed = re.search(r"sed -i 's#(s3://[\w-]+)#s3://\S+#' cluster/kubernetes/(\S+)/kustomization.yaml", COMMANDS)
    assert changed[1] == BUCKET
    files = {path for path in KUBERNETES.rglob("*.yaml") if BUCKET in path.read_text()}
    assert files == {KUBERNETES / part / "kustomization.yaml" for part in _braced(changed[2])}


def _braced(text):
    head, _, rest = text.partition("{")
    return [head + one for one in rest.removesuffix("}").split(",")]


def test_node_labels_are_on_the_page():
    for label, values in NODE_LABELS.items():
        for value in values:
            assert f"{label}={value}" in COMMANDS or re.search(rf"{label}=\w+.*\b{value}\b", COMMANDS), value


def test_services_that_are_forwarded_are_there(rendered):
    ours = {thing["metadata"]["name"] for thing in rendered["services"] if thing["kind"] == "Service"}
    heads = {
        f"{objects[0]['metadata']['name']}-{kind}-svc"
        for name, objects in rendered.items()
        if "services" not in name
        for kind in ("head", *(["serve"] if objects[0]["kind"] == "RayService" else []))
    }
    forwarded = set(re.findall(r"port-forward service/(\S+)", COMMANDS))
    assert forwarded <= ours | heads
    assert forwarded & ours
    jobs = {objects[0]["metadata"]["name"] for objects in rendered.values() if objects[0]["kind"] == "RayJob"}
    assert set(re.findall(r"logs -f job/(\S+)", COMMANDS)) <= jobs
    assert set(re.findall(r"delete rayjob ([a-z]\S*)`", PAGE)) <= jobs


def test_the_submitted_command_is_right_and_fits_its_cluster(rendered):
    words = shlex.split(re.search(r"^ray job submit -- (.*)$", COMMANDS, re.MULTILINE)[1])
    assert words[:2] == ["python", "cluster/with_room.py"]
    asked = with_room.arguments(words[2:])
    _, config = settings(shlex.join(asked.command))
    assert Path(config.storage).is_relative_to(MOUNT)
    (cluster,) = rendered["overlays/gpu/cluster"]
    most = resources(cluster["spec"], "maxReplicas")
    assert asked.gpus <= most["GPU"]
    assert asked.cpus <= most["CPU"]
    # What an identical RayJob would write: both may go on where the other was.
    assert config.run == "mtil-order1"


@pytest.mark.parametrize("overlay", ["overlays/gpu/run", "overlays/gpu-spot/run", "overlays/kueue/run"])
def test_manifests_request_what_the_table_says(rendered, overlay):
    model, load = sizing.shape("ViT-B-16"), sizing.Load()
    spec = rendered[overlay][0]["spec"]["rayClusterSpec"]

    def memory(group):
        return int(group["template"]["spec"]["containers"][0]["resources"]["requests"]["memory"].removesuffix("Gi"))

    assert memory(spec["headGroupSpec"]) >= sizing.head_pod(model, load)
    assert int(spec["headGroupSpec"]["rayStartParams"]["object-store-memory"]) == sizing.HEAD_STORE * sizing.GIB
    many = sizing.head_pod(model, replace(load, lanes=sizing.MANY))
    assert memory(spec["headGroupSpec"]) >= many > sizing.head_pod(model, load)
    assert f"The manifests' head holds {sizing.MANY} lanes\nof ViT-B/16" in PAGE
    assert memory(spec["workerGroupSpecs"][1]) >= sizing.worker_pod(model, load)
    workers = spec["workerGroupSpecs"][1]["replicas"] * memory(spec["workerGroupSpecs"][1])
    lanes = 3 * (sizing.training_host(model, load) + sizing.CONTROLLER)
    assert workers >= sizing.trials_host(model, load) + lanes
    claim = next(t for t in rendered["services"] if t["metadata"]["name"] == "condu-storage")
    size = int(claim["spec"]["resources"]["requests"]["storage"].removesuffix("Gi"))
    assert size >= sizing.run_disk(model, load) + sizing.sweep_disk(model, load, 12)


def test_figures_of_the_page_are_the_manifests(rendered):
    """What the page says in words: the ceiling of GPUs, idle seconds, deadlines, attempts, the head's size."""
    quota = next(t for t in rendered["services"] if t["kind"] == "ResourceQuota")
    assert f"a ceiling of {quota['spec']['hard']['requests.nvidia.com/gpu']} GPUs" in PAGE
    run, sweep = (rendered[f"overlays/gpu/{name}"][0]["spec"] for name in ("run", "sweep"))
    assert run["rayClusterSpec"]["autoscalerOptions"]["idleTimeoutSeconds"] == 120  # "2 minutes"
    assert run["ttlSecondsAfterFinished"] == 300  # "5 minutes"
    assert run["preRunningDeadlineSeconds"] == 3600  # "1 hour"
    assert (run["activeDeadlineSeconds"] / 86400, sweep["activeDeadlineSeconds"] / 86400) == (1, 3)
    assert f"`backoffLimit` ({run['backoffLimit']}) times" in PAGE
    attempts = run["backoffLimit"] + 1
    worst = [attempts * (one["activeDeadlineSeconds"] + one["preRunningDeadlineSeconds"]) for one in (run, sweep)]
    said = re.search(r"(\d+) attempts.*?(\d+) days and (\d+) hours.*?(\d+) days\s+and (\d+) hours", PAGE, re.DOTALL)
    numbers = [int(one) for one in said.groups()]
    assert numbers[0] == attempts
    assert [86400 * numbers[1] + 3600 * numbers[2], 86400 * numbers[3] + 3600 * numbers[4]] == worst
    head = run["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"]["requests"]
    assert f"({head['cpu']} CPUs, {head['memory'].removesuffix('Gi')} GiB)" in PAGE
