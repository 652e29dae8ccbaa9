"""The same command again: what it ends at once for, and what it looks at contents for."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from condu_ray import Experiment
from condu_ray.command_line import parse
from condu_ray.orchestration import again as again_module
from condu_ray.orchestration import run as run_module
from condu_ray.orchestration.again import again
from condu_ray.orchestration.run import from_storage, write_config
from condu_ray.orchestration.watch.lines import Lines
from condu_ray.orchestration.watch.mlflow_address import mlflow_database
from condu_ray.orchestration.watch.progress import Display
from condu_ray.plan.preflight import check
from condu_ray.plan.receipted import leave_receipt
from condu_ray.plan.stored_run import finished_run
from condu_ray.store import receipt
from condu_ray.store.artifacts import ArtifactError, read_sealed
from condu_ray.store.layout import receipt_path, results_path
from condu_ray.use.served import served_run
from condu_ray.vlm.spec import CONFIG, MERGES, WEIGHTS
from tests.benchmark.ingest.forms import class_folders
from tests.learnt import learn_here

HEAVY = ("torch", "ray", "open_clip", "mlflow", "pyarrow", "pandas", "matplotlib", "sklearn", "scipy", "numba", "PIL")


@pytest.fixture(scope="module")
def home(tmp_path_factory, task_data, small_backbone):
    """Data and a backbone of these tests' own, and a run of them, whole, with its report and receipt."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("condu_ray.report.style.png", lambda figure: b"a picture")
        return made(tmp_path_factory, task_data, small_backbone)


def made(tmp_path_factory, task_data, small_backbone):
    home = tmp_path_factory.mktemp("again")
    shutil.copytree(task_data, home / "data")
    shutil.copytree(small_backbone, home / "backbone")
    learn_here(settings(home))
    write_config(settings(home))  # as a run has it
    checked = check(settings(home))
    assert from_storage(checked, Display(["walls", "doors"], 1, Lines())) is not None
    return home


def flags(home):
    return [
        *("--method", "condu,zero-shot", "--data", str(home / "data"), "--pretrained", str(home / "backbone")),
        *("--run", "r", "--storage", str(home / "storage"), "--protocol", "task,union", "--tasks", "walls,doors"),
        *("--training.precision", "fp32", "--tracking.enabled", "false"),
    ]


def settings(home, **changes):
    return Experiment.model_validate(parse(flags(home)).model_dump() | changes)


def leave(home):
    """Writes the receipt anew, of the same files as they are now."""
    found = read_sealed(receipt_path(settings(home).run_folder))
    assert len(found["files"]) > 30
    run = settings(home).run_folder
    files, folders = (map(Path, found[kind]) for kind in ("files", "folders"))
    receipt.write_receipt(receipt_path(run), settings(home), results_path(run), files, folders, [], [])


def test_it_shows_the_table_and_writes_nothing(home, capsys):
    before = {path: path.stat().st_mtime_ns for path in (home / "storage").rglob("*")}
    found = again(settings(home))
    assert found == json.loads(Path(results_path(settings(home).run_folder)).read_text())
    shown = " ".join(capsys.readouterr().out.split())
    assert "finished before" in shown
    assert "accuracy, percent, protocol task" in shown
    assert "accuracy, percent, protocol union" in shown
    assert "report.md" in shown
    assert found["backbone"][0] in shown
    assert {path: path.stat().st_mtime_ns for path in (home / "storage").rglob("*")} == before


def test_nothing_heavy_is_loaded_for_it(home):
    code = (
        "import sys; from condu_ray.commands.run import main; main(sys.argv[2:]); "
        "print([name for name in sys.argv[1].split(',') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, ",".join(HEAVY), *flags(home)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "finished before" in done.stdout
    assert done.stdout.strip().splitlines()[-1] == "[]"


def same_size_and_time(path):
    """Another content of the same length, with the old time."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def new_task(path):
    path.mkdir()
    (path / "meta.json").write_text("{}")


def reworded(path):
    path.write_text(path.read_text().replace("red", "rot"))


def reordered(path):
    path.write_text('["doors", "walls"]')


RUN = "storage/runs/r"
CHANGES = {
    "training images": ("data/walls/train.parquet", same_size_and_time),
    "test images": ("data/doors/test.parquet", same_size_and_time),
    "classes": ("data/walls/meta.json", reworded),
    "an order": ("data/order.json", reordered),
    "another task": ("data/zebras", new_task),
    "weights": (f"backbone/{WEIGHTS}", same_size_and_time),
    "architecture": (f"backbone/{CONFIG}", same_size_and_time),
    "tokenizer": (f"backbone/{MERGES}", same_size_and_time),
    "a measurement": ("storage/evaluations/*.json", Path.unlink),
    "an expert": ("storage/experts/*/meta.json", Path.unlink),
    "prototypes": ("storage/prototypes/*/meta.json", Path.unlink),
    "a session": (f"{RUN}/condu/sessions/*/meta.json", Path.unlink),
    "a ledger": (f"{RUN}/condu/ledger.jsonl", same_size_and_time),
    "rows": (f"{RUN}/results/*.parquet", same_size_and_time),
    "settings on disk": (f"{RUN}/config.json", same_size_and_time),
    "the report": (f"{RUN}/report/report.md", Path.unlink),
    "a picture": (f"{RUN}/report/*.png", same_size_and_time),
    "numbers": (f"{RUN}/report/results.json", same_size_and_time),
    "the receipt": (f"{RUN}/receipt.json", same_size_and_time),
    "the marker": ("storage/storage.json", Path.unlink),
}
"""What of it, the first of such names, and what happens to that."""
BY_CONTENT = ("the receipt", "another task")
"""What is as it was once it has the same content; of the others, another file is looked at once."""


@pytest.mark.parametrize("what", CHANGES)
def test_what_has_changed_is_looked_at(home, what):
    assert again(settings(home)) is not None
    pattern, change = CHANGES[what]
    path = next(iter(sorted(home.glob(pattern))), home / pattern)
    content = path.read_bytes() if path.is_file() else None
    change(path)
    try:
        assert again(settings(home)) is None
    finally:
        if content is None:
            shutil.rmtree(path)
        else:
            path.write_bytes(content)
    assert (again(settings(home)) is None) == (what not in BY_CONTENT)
    if what != "the receipt":
        leave(home)


def test_a_run_without_its_prototypes_has_a_report_and_something_left_to_do(home, tmp_path, undrawn):
    """As of an earlier release, which made others: nobody could predict by them, nor the same command make them."""
    config = settings(home, storage=shutil.copytree(home / "storage", tmp_path / "storage"))
    checked, display = check(config), Display(["walls", "doors"], 1, Lines())
    assert from_storage(checked, display, routed=True) is not None
    gone = next(Path(config.storage / "prototypes").iterdir())
    shutil.rmtree(gone)
    assert from_storage(checked, display, routed=True) is None
    assert from_storage(checked, display) is not None
    assert again(config) is None
    served, words = served_run(finished_run(checked), "condu"), rf"{gone.name}: .* not there.*the run's .*own command"
    for read in (served.prototypes, served.known):
        with pytest.raises(ArtifactError, match=words):
            [read(task) for task in served.state.tasks]


def test_what_is_compiled_of_the_release_is_none_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(receipt, "ROOT", tmp_path)
    (tmp_path / "part" / "__pycache__").mkdir(parents=True)
    source, compiled = tmp_path / "part" / "fused.py", tmp_path / "part" / "__pycache__"
    source.write_text("1")
    before = receipt.circumstances(Experiment())
    for name in ("fused.cpython-311.pyc", "fused.cpython-311.pyc.140234", "fused._positions.py311.nbi"):
        (compiled / name).write_text("2")
        assert receipt.circumstances(Experiment()) == before
    source.write_text("11")
    assert receipt.circumstances(Experiment()) != before


OTHERS = {
    "a method less": {"method": ("condu",)},
    "tracking": {"tracking": {"enabled": True}},
    "precision": {"training": {"precision": "bf16"}},
    "a seed": {"seed": 1},
    "repair": {"repair": True},
    "another run": {"run": "other"},
    "a bucket": {"storage": "s3://nowhere/at-all"},
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_command_is_another(home, other):
    assert again(settings(home)) is not None
    assert again(settings(home, **OTHERS[other])) is None


def test_another_release_machine_or_folder_is_another(home, monkeypatch, tmp_path):
    for name, value in {
        "_versions": lambda: ["another torch"], "_machine": lambda: ["another machine"], "VERSION": 0,
        "ROOT": tmp_path,
    }.items():  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(receipt, name, value)
            assert again(settings(home)) is None, name
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        assert again(settings(home)) is None
    assert again(settings(home)) is not None


@pytest.mark.parametrize("changes", [{"data": "photos", "tasks": None}, {"validation_share": 0.25}])
def test_what_files_do_not_say_has_no_receipt(home, tmp_path, monkeypatch, changes):
    class_folders(tmp_path / "photos" / "birds")
    changes = changes | ({"data": tmp_path / "photos"} if "data" in changes else {})
    monkeypatch.setattr("condu_ray.plan.receipted.finished_run", lambda checked: pytest.fail("is not asked"))
    assert not leave_receipt(check(settings(home, **changes, storage=tmp_path / "storage")), [], [])


def test_mlflow_has_to_have_heard_it_all(home, monkeypatch, tmp_path, undrawn):
    config = settings(home, tracking={"enabled": True, "uri": f"sqlite:///{tmp_path}/mlflow.db"})
    assert again_module._logged(config) == []
    own = settings(home, tracking={"enabled": True})
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert again_module._logged(own) == [mlflow_database(home / "storage")]
    assert again_module._about(own) != again_module._about(config)
    path = Path(receipt_path(own.run_folder))
    path.unlink()
    unreachable = settings(home, tracking={"enabled": True, "uri": "http://127.0.0.1:9"})
    assert from_storage(check(unreachable), Display(["walls", "doors"], 1, Lines())) is not None
    assert not path.exists()


def test_a_run_that_is_measured_otherwise_than_its_report_has_it_says_so(home, monkeypatch, capsys, undrawn):
    """As where an earlier release measured it, under keys that are not looked for any more."""
    checked, path = check(settings(home)), Path(results_path(settings(home).run_folder))
    numbers = json.loads(path.read_text())
    numbers["methods"]["condu"]["union"]["accuracy"][0][1] += 1
    path.write_text(json.dumps(numbers))
    found = finished_run(checked)
    engine = SimpleNamespace(plans=[found.plan], crew=SimpleNamespace(missing=[]))
    monkeypatch.setattr(run_module, "Engine", lambda *given: engine)

    def work(engine, results, *given):
        for one in found.measured:
            results.add(*one)
        return SimpleNamespace(reused=0)

    monkeypatch.setattr(run_module, "work", work)
    said = "r: the report that was here had other accuracies of condu (union), by the same settings"
    for there in (True, False):  # by then it has the report's
        run_module.learn(checked, Display(["walls", "doors"], 1, Lines()))
        assert (said in " ".join(capsys.readouterr().out.split())) == there
