"""The Dockerfile: what it copies and installs, and what the manifests take for granted of it."""

import json
import re
import tomllib

import pytest
from dockerfile import (
    DOCKERFILE,
    DockerfileError,
    Step,
    chain,
    context_files,
    environment,
    ignore_patterns,
    ignored,
    read,
)
from places import KUBERNETES, ROOT
from replay_image import SMOKE, SYSTEM, Replay

ARGUMENTS, STAGES = read()
TARGETS = ("cpu", "cuda")


def steps(target, word):
    return [step for stage in chain(STAGES, target) for step in stage.steps if step.word == word]


def variables(target):
    found: dict[str, str] = {"PATH": "/usr/bin"}
    for step in steps(target, "ENV"):
        found |= environment(step.rest, found)
    return found


@pytest.mark.parametrize("target", TARGETS)
def test_targets_have_compiled_bytecode_a_token_and_the_environment_first(target):
    found = variables(target)
    assert found["UV_COMPILE_BYTECODE"] == "1"
    assert found["RAY_AUTH_MODE"] == "token"
    assert found["PATH"].startswith("/opt/venv/bin:")
    assert found["NVIDIA_VISIBLE_DEVICES"] == {"cpu": "void", "cuda": "all"}[target]


@pytest.mark.parametrize("target", TARGETS)
def test_everything_is_installed_by_the_lock(target):
    installs = [step.rest for step in steps(target, "RUN") if "pip install" in step.rest and "/opt/venv" in step.rest]
    assert len(installs) == 2
    assert "--constraint requirements.lock" in installs[0]
    assert "--no-deps ." in installs[1]
    assert re.fullmatch(r"UV_VERSION=\d+\.\d+\.\d+", steps(target, "ARG")[0].rest)


@pytest.mark.parametrize("target", TARGETS)
def test_the_user_is_the_manifests(target):
    *_, user = steps(target, "USER")
    text = "".join(path.read_text() for path in [*KUBERNETES.glob("base/*"), *KUBERNETES.glob("nodes/gpu/*")])
    for key, number in zip(("runAsUser", "runAsGroup"), user.rest.split(":"), strict=True):
        assert int(number) > 0
        assert set(re.findall(rf"{key}: (\d+)", text)) == {number}
    assert f"--uid {user.rest.split(':')[0]}" in next(s.rest for s in steps(target, "RUN") if "useradd" in s.rest)


def test_where_there_are_gpus_there_are_the_compilers_that_are_asked_for():
    """Triton looks for `gcc`, and `training.compile` is refused without `g++` (vlm/towers.py)."""
    installed = {word for step in steps("cuda", "RUN") if "apt-get install" in step.rest for word in step.rest.split()}
    assert {"gcc", "g++", "libc6-dev"} <= installed
    assert steps("cuda", "USER")[-1].rest == steps("cpu", "USER")[-1].rest


@pytest.mark.parametrize("target", TARGETS)
def test_entry_points_lie_in_the_working_folder(target):
    """`ray job submit -- python jobs/run_mtil.py` runs where `ray start` ran."""
    assert steps(target, "WORKDIR")[-1].rest == "/opt/condu_ray"
    last = chain(STAGES, "cpu")[1]
    copied = {
        str(path)
        for step in last.steps
        if step.word == "COPY" and not step.flags
        for path in context_files(step.rest.split()[0])
    }
    assert {"jobs/run_mtil.py", "jobs/sweep_orders.py", "cluster/with_room.py"} <= copied
    assert not [path for path in copied if path.startswith("condu_ray/")], "the source would hide the installed package"


def test_ports_are_the_heads():
    text = (KUBERNETES / "base" / "raycluster.yaml").read_text().split("workerGroupSpecs")[0]
    assert sorted(re.findall(r"containerPort: (\d+)", text)) == sorted(steps("cpu", "EXPOSE")[0].rest.split())


def test_the_command_and_the_health_check_are_rays():
    from ray.scripts.scripts import start

    assert json.loads(steps("cpu", "CMD")[-1].rest)[:2] == ["ray", "start"]
    known = {name for option in start.params for name in option.opts}
    assert {word.split("=")[0] for word in json.loads(steps("cuda", "CMD")[-1].rest)[2:]} <= known
    health = re.search(r"CMD (\[.*\])", steps("cpu", "HEALTHCHECK")[0].rest)
    code = json.loads(health[1])[2]
    compile(code, "health", "exec")
    agent_port = next(option.default for option in start.params if "--dashboard-agent-listen-port" in option.opts)
    assert f"127.0.0.1:{agent_port}/api/healthz" in code


def test_python_is_one_that_the_package_takes():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert wanted == ">=3.11"
    minor = re.match(r"python:3\.(\d+)-slim", ARGUMENTS["PYTHON_IMAGE"])
    assert int(minor[1]) >= 11
    locked = re.search(r"--python-version (\S+)", (ROOT / "requirements.lock").read_text())
    assert locked[1] == f"3.{minor[1]}"


@pytest.mark.parametrize(
    ("path", "out"),
    [
        ("condu_ray/config.py", False),
        ("condu_ray/vlm/tiny_clip/open_clip_model.safetensors", False),
        ("condu_ray/vlm/__pycache__/model.cpython-311.pyc", True),
        ("jobs/run_mtil.py", False),
        ("cluster/with_room.py", False),
        ("cluster/README.md", True),
        (".venv/bin/python", True),
        (".git/config", True),
        ("storage/runs/a/config.json", True),
        ("requirements.lock", False),
        ("requirements.lock.bak", True),
    ],
)
def test_the_build_context_is_what_is_needed(path, out):
    assert ignored(path, ignore_patterns()) is out


def test_no_package_registry_is_named():
    hosts = re.compile(
        r"pypi\.org|pythonhosted|docker\.io|ghcr\.io|quay\.io|nvcr\.io|gcr\.io|\.pkg\.dev|--(extra-)?index-url"
    )
    for path in (ROOT / "cluster").rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            assert not hosts.search(path.read_text()), path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("RUN ls\n", "line 1: RUN before FROM"),
        ("FROM a\nADD x y\n", "line 2: ADD is not replayed"),
        ("FROM a\nENV A=1 \\\n  B=2\nSHELL [1]\n", "line 4: SHELL"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path, text, words):
    path = tmp_path / "Dockerfile"
    path.write_text(text)
    with pytest.raises(DockerfileError, match=words):
        read(path)


def test_an_unknown_target_or_source_is_refused():
    with pytest.raises(DockerfileError, match="no target 'gpu'; there are build, runtime, cpu, cuda"):
        chain(STAGES, "gpu")
    with pytest.raises(DockerfileError, match="not in the build context"):
        context_files("tests")


def test_a_replay_moves_paths_expands_variables_and_stops_at_a_failing_command(tmp_path):
    built = Replay(tmp_path, tmp_path / "bin")
    for step in [
        Step(1, "ENV", {}, "PATH=/opt/venv/bin:$PATH A=1"),
        Step(2, "WORKDIR", {}, "/opt/condu_ray"),
        Step(3, "COPY", {}, "requirements.lock LICENSE ./"),
        Step(4, "COPY", {}, "jobs jobs"),
        Step(5, "RUN", {}, 'echo "$A $PATH" > /opt/out'),
        Step(6, "RUN", {}, "useradd nobody2"),
    ]:
        built.run(step)
    assert (tmp_path / "opt/out").read_text().startswith(f"1 {tmp_path}/opt/venv/bin:{tmp_path}/bin")
    assert (tmp_path / "opt/condu_ray/LICENSE").is_file()
    assert (tmp_path / "opt/condu_ray/jobs/run_mtil.py").is_file()
    with pytest.raises(Exception, match="non-zero exit status 3"):
        built.run(Step(7, "RUN", {}, "exit 3"))


def test_only_steps_that_change_the_system_are_left_out_of_a_replay():
    left_out = {
        target: [step.rest.split()[0] for step in steps(target, "RUN") if SYSTEM.match(step.rest)] for target in TARGETS
    }
    assert left_out["cpu"] == ["python", "apt-get", "groupadd"]  # the interpreter's own library, wget, the user
    assert left_out["cuda"] == [*left_out["cpu"], "apt-get"]  # a C compiler
    assert any("run_mtil.py" in command for command in SMOKE)
    assert DOCKERFILE.with_name("Dockerfile.dockerignore").is_file()
