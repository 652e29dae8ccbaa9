"""The commands that use a run, as they are typed: what they write, and what they refuse before any model is loaded."""

import csv
import errno
import io
import json
import os
import re
import shutil
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from obstore.store import MemoryStore
from PIL import Image

from condu_ray import Experiment, Predictor
from condu_ray.commands import export, report
from condu_ray.commands.__main__ import main
from condu_ray.methods import get
from condu_ray.options import Inference
from condu_ray.orchestration.run import write_config
from condu_ray.orchestration.watch import registry
from condu_ray.store.artifacts import WriteError
from condu_ray.store.bucket import CONNECTED, Bucket
from condu_ray.store.drafts import DEAD_SECONDS
from condu_ray.store.layout import ledger_path
from condu_ray.use import rows as rows_module
from condu_ray.use.bundle import write_bundle
from condu_ray.use.parts import predict_parts
from condu_ray.use.rows import SCHEMA, output
from condu_ray.use.served import UseError, served_run
from condu_ray.use.sources import pictures, pieces, read
from tests.conftest import TASKS, give_label, write_task


@pytest.fixture
def console(monkeypatch, capsys, storage):
    """Runs a command on the run `r`; returns its exit code and what it printed."""

    def run(command, *arguments):
        monkeypatch.setattr(sys, "argv", ["condu-ray", command, "r", "--storage", str(storage), *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def folder(tmp_path):
    draw = np.random.default_rng(2)
    made = tmp_path / "photos"
    (made / "more").mkdir(parents=True)
    for place, name in enumerate(("a.png", "b.JPG", "more/c.webp")):
        Image.fromarray(draw.integers(0, 255, (20 + place, 20, 3), dtype=np.uint8)).save(made / name)
    (made / "notes.txt").write_text("no picture")
    (made / "broken.png").write_bytes(b"no picture either")
    return made


class TestSources:
    def test_folders_patterns_and_files(self, folder):
        found = [name for name, _ in pictures([str(folder)])]
        assert found == [str(folder / name) for name in ("a.png", "b.JPG", "broken.png", "more/c.webp")]
        assert [name for name, _ in pictures([str(folder / "*.png"), str(folder / "notes.txt")])] == [
            str(folder / name) for name in ("a.png", "broken.png", "notes.txt")
        ]

    def test_parquet_of_bytes_and_of_hugging_faces_structs(self, folder):
        content = [(folder / "a.png").read_bytes(), (folder / "b.JPG").read_bytes(), None]
        pq.write_table(pa.table({"image": pa.array(content, pa.binary())}), folder / "plain.parquet")
        structs = [{"bytes": one, "path": "x.png"} for one in content]
        pq.write_table(pa.table({"image": structs, "label": [0, 1, 2]}), folder / "structs.parquet")
        for name in ("plain.parquet", "structs.parquet"):
            found = list(pictures([str(folder / name)]))
            assert [one for one, _ in found] == [f"{folder / name}#{row}" for row in range(3)]
            assert [one for _, one in found] == [*content[:2], b""]

    @pytest.mark.parametrize("size", [1, 2, 3, 4, 100])
    def test_pieces_are_all_pictures_once_and_in_order(self, folder, size):
        content = [(folder / name).read_bytes() for name in ("a.png", "b.JPG", "a.png", "b.JPG", "a.png")]
        pq.write_table(pa.table({"image": pa.array(content, pa.binary())}), folder / "rows.parquet", row_group_size=2)
        given = [str(folder), str(folder / "rows.parquet")]
        groups = list(pieces(given, size))
        counts = [sum(max(1, one.stop - one.start) for one in group) for group in groups]
        assert set(counts[:-1]) <= {size}
        assert [one for group in groups for one in read(group)] == list(pictures(given))

    def test_linked_folders_are_looked_into_and_what_is_a_picture_to_a_person_is_there(self, folder, tmp_path):
        (tmp_path / "other").mkdir()
        (folder / "a.png").rename(tmp_path / "other" / "a.png")
        (folder / "link").symlink_to(tmp_path / "other")
        (folder / "more" / "round").symlink_to(folder)
        (folder / "phone.HEIC").write_bytes(b"no picture here")
        for hidden in (folder / "._b.JPG", folder / ".thumbnails" / "b.png", folder / "__MACOSX" / "b.png"):
            hidden.parent.mkdir(exist_ok=True)
            hidden.write_bytes(b"what a file browser left")
        found = [name for name, _ in pictures([str(folder)])]
        names = ("b.JPG", "broken.png", "link/a.png", "more/c.webp", "phone.HEIC")
        assert found == [str(folder / name) for name in names]

    def test_an_empty_name_is_not_the_folder_one_is_in(self, folder, monkeypatch):
        monkeypatch.chdir(folder)
        with pytest.raises(UseError, match="a picture's name is empty"):
            next(pictures([""]))

    def test_without_a_row_there_is_no_picture(self, folder):
        pq.write_table(pa.table({"image": pa.array([], pa.binary())}), folder / "empty.parquet")
        with pytest.raises(UseError, match=r"empty.parquet: no rows, and so no picture"):
            next(pictures([str(folder / "empty.parquet")]))
        assert len(list(pictures([str(folder / "empty.parquet"), str(folder / "a.png")]))) == 1

    def test_what_is_not_there_is_refused_before_the_first(self, folder):
        (folder / "empty").mkdir()
        pq.write_table(pa.table({"picture": ["a"]}), folder / "other.parquet")
        (folder / "torn.parquet").write_bytes(b"PAR1")
        for name, words in (
            ("none.png", "no such file"), ("*.gif", "no such file"), ("empty", "no picture in this folder"),
            ("other.parquet", "no column 'image'"), ("torn.parquet", "cannot be read as Parquet"),
        ):  # fmt: skip
            with pytest.raises(UseError, match=words):
                next(pictures([str(folder / "a.png"), str(folder / name)]))


class TestPredict:
    def test_a_table_in_the_terminal(self, console, folder, monkeypatch):
        monkeypatch.chdir(folder)
        code, shown, _ = console("predict", ".", "--method", "condu", "--task", "walls")
        assert code == 0
        assert "a.png" in shown
        assert "error:" in shown
        assert "1 of 4 pictures could not be read" in shown

    def test_names_with_brackets_are_shown_as_they_are(self, console, folder, monkeypatch):
        (folder / "a.png").rename(folder / "a[b].png")
        monkeypatch.chdir(folder)
        code, shown, _ = console("predict", "a[b].png", "--method", "condu", "--classes", "[red],[/x]")
        assert code == 0
        assert all(word in shown for word in ("a[b].png", "[red]", "[/x]"))

    @pytest.mark.parametrize("kind", ["parquet", "csv", "json", "jsonl"])
    def test_a_name_that_is_no_text_is_spelt_and_one_that_is_given_twice_stays(self, console, folder, tmp_path, kind):
        odd = os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")
        (folder / "a.png").rename(odd)
        path = tmp_path / f"out.{kind}"
        assert (
            console("predict", odd, folder / "b.JPG", folder / "b.JPG", "--method", "condu", "--output", path)[0] == 0
        )
        rows = {
            "parquet": lambda: pq.read_table(path).to_pylist(),
            "csv": lambda: list(csv.DictReader(io.StringIO(path.read_text()))),
            "json": lambda: json.loads(path.read_text()),
            "jsonl": lambda: [json.loads(line) for line in path.read_text().splitlines()],
        }[kind]()
        assert [row["image"] for row in rows] == [f"{folder}/caf\\xe9.png", *2 * [str(folder / "b.JPG")]]

    def test_parts_know_a_name_that_is_no_text(self, found, folder, tmp_path):
        (folder / "a.png").rename(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))
        predictor = Predictor.load(found, method="condu")
        ((path, _),) = predict_parts(predictor, [str(folder)], tmp_path / "parts", {"task": "walls"})
        names = ("b.JPG", "broken.png", "caf\\xe9.png", "more/c.webp")
        assert pq.read_table(path)["image"].to_pylist() == [f"{folder}/{name}" for name in names]

    def test_parts_of_another_precision_are_another_folders(self, console, folder, tmp_path):
        flags = ("predict", folder, "--method", "condu", "--output", tmp_path / "parts")
        assert console(*flags, "--precision", "bf16")[0] == 0
        code, _, error = console(*flags)
        assert code == 2
        assert "holds predictions of another precision" in error

    @pytest.mark.parametrize("kind", ["parquet", "csv", "json", "jsonl"])
    def test_a_file_has_every_row(self, console, found, folder, tmp_path, kind, monkeypatch):
        monkeypatch.setattr(rows_module, "GROUP", 2)
        path = tmp_path / f"out.{kind}"
        code, shown, _ = console("predict", folder, "--method", "condu", "--output", path, "--top_k", 2)
        assert code == 0
        assert "4 pictures" in shown
        text = path.read_text() if kind != "parquet" else ""
        rows = {
            "parquet": lambda: pq.read_table(path).to_pylist(),
            "csv": lambda: list(csv.DictReader(io.StringIO(text))),
            "json": lambda: json.loads(text),
            "jsonl": lambda: [json.loads(line) for line in text.splitlines()],
        }[kind]()
        images = [str(folder / name) for name in ("a.png", "b.JPG", "broken.png", "more/c.webp")]
        expected = Predictor.load(found, method="condu").predict(images, top_k=2, errors="keep")
        assert [row["image"] for row in rows] == images
        assert [row["class"] or None for row in rows] == [one.label for one in expected]
        assert [bool(row["error"]) for row in rows] == [False, False, True, False]
        assert list(rows[0]) == SCHEMA.names
        lists = [json.loads(row["experts"]) if kind == "csv" else row["experts"] for row in rows]
        assert lists == [list(one.experts) for one in expected]
        assert not list(tmp_path.glob(".out*"))

    def test_a_folder_of_parts_is_gone_on_with(self, found, folder, tmp_path):
        predictor, out = Predictor.load(found, method="condu"), tmp_path / "out"
        asked = {"task": None, "classes": None, "top_k": 2, "templates": None}
        first = predict_parts(predictor, [str(folder)], out, asked, part=3)
        assert next(first) == (out / "part-000000.parquet", True)
        first.close()  # stopped after one part
        before = (out / "part-000000.parquet").stat().st_mtime_ns
        assert list(predict_parts(predictor, [str(folder)], out, asked, part=3)) == [
            (out / "part-000000.parquet", False), (out / "part-000001.parquet", True),
        ]  # fmt: skip
        assert (out / "part-000000.parquet").stat().st_mtime_ns == before
        rows = pq.read_table(sorted(out.glob("*.parquet"))).to_pylist()
        expected = predictor.predict([path for path, _ in pictures([str(folder)])], top_k=2, errors="keep")
        assert [row["class"] for row in rows] == [one.label for one in expected]
        for changed, words in (
            ((predictor, [str(folder / "a.png")], out, asked, 3), "another images"),
            ((predictor, [str(folder)], out, asked | {"top_k": 3}, 3), "another asked"),
            ((Predictor.load(found, method="average"), [str(folder)], out, asked, 3), "another state"),
            ((predictor, [str(folder)], folder, asked, 3), "something else is there"),
            ((predictor, [str(folder)], out / "a" / "b", asked, 3), "there is no folder"),
        ):
            with pytest.raises(UseError, match=words):
                list(predict_parts(*changed))
        about = json.loads((out / "predictions.json").read_text())
        for key in ("label space", "inference", "files"):  # as an earlier release wrote it
            del about[key]
        (out / "predictions.json").write_text(json.dumps(about))
        assert len(list(predict_parts(predictor, [str(folder)], out, asked, part=3))) == 2
        index = out / "predictions.json"
        assert {"label space", "inference", "files"} < json.loads(index.read_text()).keys()  # known from now on
        # of a state whose experts had temperatures, which they have no more
        index.write_text(json.dumps(json.loads(index.read_text()) | {"temperatures": {"walls": 2.0}}))
        with pytest.raises(UseError, match="another temperatures"):
            list(predict_parts(predictor, [str(folder)], out, asked, 3))

    def test_parts_of_pictures_that_were_written_anew_are_another_folders(self, found, folder, tmp_path):
        predictor, out = Predictor.load(found, method="condu"), tmp_path / "out"
        asked = {"task": "walls", "classes": None, "top_k": 2, "templates": None}
        first = predict_parts(predictor, [str(folder)], out, asked, part=3)
        next(first)
        first.close()
        shutil.copy(folder / "b.JPG", folder / "a.png")  # under the same name
        with pytest.raises(UseError, match=r"another state of the pictures' files \(their sizes or times\)"):
            next(predict_parts(predictor, [str(folder)], out, asked, part=3))

    def test_a_link_to_nothing_that_a_pattern_finds_is_said_in_its_row(self, found, folder, tmp_path):
        (folder / "gone.png").symlink_to(tmp_path / "nowhere")
        predictor, asked = Predictor.load(found, method="condu"), {"task": "walls", "classes": None, "templates": None}
        for made in (True, False):
            [(path, now)] = predict_parts(predictor, [str(folder / "*.png")], tmp_path / "out", asked | {"top_k": 1})
            assert now == made
        wrong = [row["image"] for row in pq.read_table(path).to_pylist() if row["error"]]
        assert wrong == [str(folder / "broken.png"), str(folder / "gone.png")]

    def test_a_part_is_on_the_disk_before_it_has_its_name(self, found, folder, tmp_path, monkeypatch):
        """Whoever goes on after a power cut takes what is there for made."""
        said, sync, replace = [], rows_module.sync, os.replace
        monkeypatch.setattr(rows_module, "sync", lambda path: (said.append(f"sync {path.name[:6]}"), sync(path)))
        monkeypatch.setattr(os, "replace", lambda a, b: (said.append(f"appear {b.name[:6]}"), replace(a, b)))
        asked = {"task": "walls", "classes": None, "top_k": 2, "templates": None}
        list(predict_parts(Predictor.load(found, method="condu"), [str(folder)], tmp_path / "out", asked))
        assert said[-3:] == ["sync .part-", "appear part-0", "sync out"]

    def test_what_is_hidden_in_a_folder_of_parts_is_none(self, found, folder, tmp_path):
        """Such as the draft of one that was killed before its index was there."""
        asked, out = {"task": "walls", "classes": None, "top_k": 2, "templates": None}, tmp_path / "out"
        out.mkdir()
        (out / f".predictions.json.{32 * 'a'}").write_text("{")
        predictor = Predictor.load(found, method="condu")
        assert list(predict_parts(predictor, [str(folder)], out, asked)) == [(out / "part-000000.parquet", True)]
        dead, young = (out / f".part-000000.parquet.{digit * 32}" for digit in "ab")  # of predictors that were killed
        for draft, age in ((dead, 2 * DEAD_SECONDS), (young, 60)):
            draft.write_bytes(b"half")
            os.utime(draft, (draft.stat().st_mtime - age,) * 2)
        list(predict_parts(predictor, [str(folder)], out, asked))
        assert (dead.exists(), young.exists()) == (False, True)

    def test_parts_of_a_run_whose_settings_were_changed_are_another_folders(self, found, folder, tmp_path):
        """Its states stay what they are: neither how pictures are routed nor which tasks it learns later is of them."""
        asked = {"task": None, "classes": None, "top_k": 2, "templates": None}
        served, out = served_run(found, "condu", 1), tmp_path / "out"
        list(predict_parts(Predictor(served), [str(folder)], out, asked))
        for change, words in (
            ({"inference": Inference(top_k=1)}, "another inference"),
            ({"evaluation": found.config.evaluation.model_copy(update={"fidelity": "whole"})}, ""),
        ):
            method = get("condu", found.config.model_copy(update=change))
            again = predict_parts(Predictor(replace(served, method=method)), [str(folder)], out, asked)
            with pytest.raises(UseError, match=words) if words else nullcontext():
                list(again)
        more = Predictor(replace(served, labels=served.labels[:2]))
        with pytest.raises(UseError, match="another label space"):
            list(predict_parts(more, [str(folder)], out, asked))
        with pytest.raises(UseError, match="did you mean walls"):
            list(predict_parts(more, [str(folder)], tmp_path / "not made", asked | {"task": "wals"}))
        assert not (tmp_path / "not made").exists()

    def test_parts_by_the_command(self, console, folder, tmp_path):
        for said in ("part-000000.parquet\n", "part-000000.parquet: was there\n"):
            code, shown, _ = console("predict", folder, "--method", "condu", "--output", tmp_path / "out")
            assert (code, shown.endswith(said)) == (0, True)

    def test_a_folder_of_parts_that_may_not_be_made_is_refused_in_a_sentence(
        self, console, folder, tmp_path, monkeypatch
    ):
        def refused(path, *_, **__):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

        monkeypatch.setattr("condu_ray.use.parts.Path.mkdir", refused)
        code, _, told = console("predict", folder, "--method", "condu", "--output", tmp_path / "out")
        assert (code, told.splitlines()[-1].split(";")[0]) == (
            2,
            f"error: {tmp_path / 'out'}: cannot be written (Permission denied)",
        )

    def test_words_of_the_users_own(self, console, folder):
        code, shown, _ = console("predict", folder / "a.png", "--method", "average", "--classes", "a cat, a dog")
        assert code == 0
        assert "a cat" in shown
        assert "a dog" in shown

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["a.png"], "several methods"),
            (["a.png", "--method", "condu", "--task", "wals"], "did you mean walls"),
            (["none.png"], "no such file"),
            (["a.png", "--workers", "2"], "an --output that is a folder"),
            (["a.png", "--output", "x.txt"], "ends with one of .parquet"),
            (["a.png", "--output", "no/x.csv"], "there is no folder no"),
            (["a.png", "--output=~/no/x.csv"], f"there is no folder {os.path.expanduser('~')}/no"),
            (["a.png", "--output", "~nobody0/x.csv"], "~nobody0 is no user's home"),
            (["a.png", "--template", "a {}"], "is for --classes"),
            (["a.png", "--method", "condu", "--session", "0"], "counted from 1"),
            (["a.png", "--method", "condu", "--session", "4"], "is not committed; there are 3"),
        ],
    )
    def test_refusals(self, console, folder, monkeypatch, arguments, words):
        monkeypatch.chdir(folder)
        code, _, error = console("predict", *arguments)
        assert code == 2
        assert words in error

    def test_a_file_that_was_there_stays_where_prediction_fails(self, tmp_path):
        path = tmp_path / "out.csv"
        path.write_text("before")
        with pytest.raises(ValueError, match="stop"), output(path):
            raise ValueError("stop")
        assert path.read_text() == "before"
        assert [one.name for one in tmp_path.iterdir()] == ["out.csv"]


class TestExport:
    def test_a_model_and_a_bundle(self, console, found, folder, tmp_path):
        code, shown, _ = console("export", "--method", "condu", "--task", "cars", "--to", tmp_path / "cars")
        assert code == 0
        assert "open_clip_model.safetensors" in shown
        code, shown, _ = console("export", "--method", "condu", "--session", 2, "--bundle", tmp_path / "bundle")
        assert code == 0
        assert "unified.safetensors" in shown
        assert Predictor.load(tmp_path / "bundle").tasks == ("walls", "doors")

    def test_a_bundle_of_a_run_by_its_folder_goes_to_its_own_storages_mlflow(self, storage, tmp_path, monkeypatch):
        """It went to a new file in the folder that the command was called in."""
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        monkeypatch.chdir(tmp_path)
        told = []
        monkeypatch.setattr(registry, "register_bundle", lambda *what: str(told.append(what[-1])))
        run = str(storage / "runs" / "r")
        export.main.__wrapped__([run, "--method", "condu", "--bundle", "b", "--mlflow", "name"])
        assert [str(one) for one in told] == [str(storage)]

    def test_into_a_bucket(self, console, monkeypatch, tmp_path):
        """It ended in a traceback once all was written, before it registered anything."""
        monkeypatch.setenv("CONDU_RAY_CACHE", str(tmp_path / "copies"))
        monkeypatch.setitem(CONNECTED, "s3://exported", Bucket(MemoryStore(), "s3://exported"))
        registered = []
        monkeypatch.setattr(registry, "register_bundle", lambda folder, *_: registered.append(folder) or "registered")
        asked = ("--method", "condu", "--bundle", "s3://exported/bundle", "--mlflow", "name")
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        code, shown, _ = console("export", *asked)
        assert (code, "unified.safetensors" in shown, "registered" in shown) == (0, True, True)
        assert (registered[0] / "unified.safetensors").is_file()
        assert console("export", "--method", "condu", "--task", "cars", "--to", "s3://exported/cars")[0] == 0
        assert Predictor.load("s3://exported/bundle").tasks == tuple(TASKS)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--task", "cars"], "belongs to --task and --merged"),
            (["--bundle", "b", "--to", "c"], "has its own folder"),
            (["--merged", "--to", "c", "--mlflow", "x"], "are for a --bundle"),
            (["--bundle", "b", "--format", "hf"], "a form of its own"),
            (["--bundle", "b", "--tracking_uri", "x"], "is for --mlflow"),
            (["--bundle", "b", "--mlflow", "x", "--tracking_uri", "htp://host:1"], "MLflow knows no htp://"),
            (["--bundle", "b", "--mlflow", "x", "--tracking_uri", "http://127.0.0.1:9"], "no server answers there"),
            (["--bundle", "b", "--mlflow", "x", "--tracking_uri", ""], "--tracking_uri: is empty"),
            (["--to", "c"], "one of the arguments --task --merged --bundle is required"),
            (["--merged", "--to", "c", "--method", "condu"], "has no one model"),
        ],
    )
    def test_refusals(self, console, tmp_path, monkeypatch, arguments, words):
        monkeypatch.chdir(tmp_path)
        code, _, error = console("export", *arguments)
        assert code == 2
        assert words in error
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "run", "words"),
    [
        (["inspect"], "bundle", "bundle: is a bundle, which is for predict, evaluate, export and serve; give the run"),
        (["rollback", "--session", "1"], "bundle", "bundle: is a bundle"),
        (["add", "--tasks", "birds"], "bundle", "bundle: is a bundle"),
        (["predict", "photos"], "bundle.zip", "bundle.zip: is a file; .* or a bundle's, unpacked"),
        (["evaluate"], "bundle.zip", "bundle.zip: is a file"),
        (
            ["predict", "photos"],
            "photos",
            "photos: is a folder, but no run's .* no bundle's; and storage has no run",
        ),
        (["inspect"], "photos", "photos: is a folder, but no run's"),
    ],
)
def test_what_is_no_run_is_refused_as_what_it_is(command, run, words, found, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_bundle(served_run(found, "condu"), tmp_path / "bundle")
    (tmp_path / "bundle.zip").write_bytes(b"PK")
    monkeypatch.setattr(sys, "argv", ["condu-ray", command[0], run, *command[1:]])
    with pytest.raises(SystemExit) as end:
        main()
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert re.search(words, error), error


def test_a_runs_name_is_a_run_whatever_lies_here(console, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r").mkdir()
    assert console("export", "--method", "condu", "--bundle", tmp_path / "bundle")[0] == 0


class TestEvaluate:
    def test_it_agrees_with_what_the_run_measured(self, console, found, task_data, tmp_path):
        path = tmp_path / "out.json"
        code, shown, _ = console("evaluate", "--method", "condu", "--session", 2, "--data", task_data, "--output", path)
        assert code == 0
        numbers = json.loads(path.read_text())["tasks"]
        for task in found.tasks:  # cars is not learned then, and routed
            expected = found.matrix("condu").iloc[1][task.name]
            one = numbers[task.name]
            assert one["percent"] == expected
            assert np.trace(one["confusion"]) == one["correct"]
            assert np.sum(one["confusion"]) == one["images"] == task.test_rows
            assert np.sum(one["confusion"], axis=1).tolist() == [8] * len(task.classes)
            assert f"{task.name}: {expected:.2f} %" in shown
        assert numbers["walls"]["experts"] == {"walls": 1.0}
        assert set(numbers["cars"]["experts"]) <= {"pretrained", "walls", "doors"}
        assert console("evaluate", "--method", "condu", "--session", 2, "--tasks", "cars", "--output", path)[0] == 0
        assert json.loads(path.read_text())["tasks"] == {"cars": numbers["cars"]}  # of the run's own tasks

    def test_another_tasks_expert_may_answer(self, console, task_data, tmp_path):
        path = tmp_path / "out.json"
        arguments = ("--method", "individual", "--data", task_data, "--tasks", "cars", "--by", "walls")
        assert console("evaluate", *arguments, "--output", path)[0] == 0
        assert json.loads(path.read_text())["tasks"]["cars"]["experts"] == {"walls": 1.0}

    @pytest.mark.parametrize("label", [-1, 2, None])
    def test_a_label_that_is_no_class_is_refused(self, console, tmp_path, label):
        for task in ("cars", "doors"):
            write_task(tmp_path / "data" / task, TASKS["doors"], 1)
        give_label(tmp_path / "data" / "doors" / "test.parquet", 5, label)
        code, shown, error = console("evaluate", "--method", "condu", "--data", tmp_path / "data")
        assert (code, "images" in shown) == (2, False)  # before the first task is measured
        assert f"test.parquet: row 5 has label {label}; write labels from 0 to 1" in error

    def test_classes_that_are_one_text_are_refused_before_the_first_task_is_measured(self, console, tmp_path):
        write_task(tmp_path / "data" / "doors", TASKS["doors"], 1)
        meta = write_task(tmp_path / "data" / "years", TASKS["doors"], 1) / "meta.json"
        meta.write_text(json.dumps(json.loads(meta.read_text()) | {"classes": ["12", "1 2"]}))
        code, shown, error = console("evaluate", "--method", "condu", "--data", tmp_path / "data")
        assert (code, "images" in shown) == (2, False)
        assert re.search(r"years/meta\.json: to backbone .* classes 0 '12' and 1 '1 2' are the same tokens", error), (
            error
        )

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--by", "wals"], "did you mean walls"),
            (["--tasks", "nothing"], "no task 'nothing'"),
            (["--tasks", "carts"], "is no task of r (did you mean cars?)"),
            (["--output", "x.csv"], "ends with .json"),
            (["--output", "~nobody0/x.json"], "~nobody0 is no user's home"),
            (["--method", "individual", "--session", "1"], "cannot predict without one"),
        ],
    )
    def test_refusals(self, console, task_data, arguments, words):
        method = [] if "--method" in arguments else ["--method", "condu"]
        data = () if arguments == ["--tasks", "carts"] else ("--data", task_data)
        code, shown, error = console("evaluate", *data, *method, *arguments)
        assert (code, "images" in shown) == (2, False)
        assert words in error


@pytest.mark.parametrize("where", ["/proc/out", "a folder"])
@pytest.mark.parametrize("command", ["predict", "evaluate", "inspect"])
def test_what_cannot_be_written_is_refused_before_a_model_is_loaded(
    console, folder, tmp_path, monkeypatch, command, where
):
    """Exit code 2 says that nothing was spent."""

    def load(*_, **__):
        raise AssertionError("a model is loaded")

    for module in ("predictor.Predictor.__init__", "inspect.inspected"):
        monkeypatch.setattr(f"condu_ray.use.{module}", load)
    out = f"{tmp_path / 'out' if where == 'a folder' else where}.{'html' if command == 'inspect' else 'json'}"
    if where == "a folder":
        os.mkdir(out)
    what = {"predict": [folder, "--method", "condu"], "evaluate": ["--method", "condu"], "inspect": []}[command]
    code, _, error = console(command, *what, "--output", out)
    assert (code, f"{out}: " in error) == (2, True)
    assert "cannot be written" in error
    assert not list(tmp_path.glob("out*/*"))


def test_the_page_of_a_run_that_cannot_be_written_to_may_go_elsewhere(console, storage, tmp_path, monkeypatch):
    def full(path):
        raise WriteError(f"{path}: cannot be written (Read-only file system); look at the disk")

    monkeypatch.setattr("condu_ray.store.writable.require_writable", full)
    code, _, error = console("inspect")
    assert (code, "inspect.html: cannot be written" in error, "--output FILE" in error) == (2, True, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sync-mlflow"], "--sync-mlflow: name the runs"),
        (["--out", "x"], "--out: name the runs"),
        (["--published"], "--published: name the runs"),
        (["r", "--tracking-uri", "http://host"], "is for --sync-mlflow"),
        (["r", "--sync-mlflow", "--tracking-uri", ""], "--tracking-uri: is empty"),
        (["r", "--out", " "], "--out: is empty"),
    ],
)
def test_flags_of_a_report_that_would_do_nothing_are_refused(storage, monkeypatch, capsys, arguments, words):
    """Somebody would take for sent, or written there, what is not."""
    with pytest.raises(SystemExit) as end:
        report.main(["--storage", str(storage), *arguments])
    said = capsys.readouterr()
    assert (end.value.code, words in said.err, said.out) == (2, True, "")


def test_a_report_that_was_begun_before_a_change_of_its_run_ended_is_made_again(tmp_path, monkeypatch):
    """It takes no lease: else what `add` wrote would be overwritten by the numbers of before."""
    config, made = Experiment(storage=tmp_path, run="r", tasks=("a",)), []
    ledger = Path(ledger_path(config.run_folder, "condu"))

    def run_report(config, out):
        made.append(config.tasks)
        if len(made) == 1:  # meanwhile
            write_config(config.model_copy(update={"tasks": ("a", "b")}))
        elif len(made) == 2:
            ledger.parent.mkdir()
            ledger.write_text("a line\n")

    write_config(config)
    monkeypatch.setattr(report, "run_report", run_report)
    report.main(["r", "--storage", str(tmp_path)])
    assert made == [("a",), ("a", "b"), ("a", "b")]


def test_the_report_of_a_run_that_cannot_be_written_to_goes_elsewhere(console, storage, tmp_path, monkeypatch):
    """A colleague's: of the numbers that the run wrote, and nothing is written beside them."""

    def full(path):
        raise WriteError(f"{path}: cannot be written (Read-only file system); look at the disk")

    monkeypatch.setattr("condu_ray.report.style.png", lambda figure: b"a picture")
    assert console("report")[0] == 0
    before = {path: path.stat().st_mtime_ns for path in storage.rglob("*")}
    monkeypatch.setattr("condu_ray.store.writable.require_writable", full)
    code, _, error = console("report")
    assert (code, "results.json: cannot be written" in error, "--out DIR" in error) == (2, True, True)
    code, _, error = console("report", "--published")  # whose own place is beside the runs
    assert (code, "sweep.json: cannot be written" in error, "--out DIR" in error) == (2, True, True)
    code, shown, _ = console("report", "--out", tmp_path / "mine")
    assert (code, "of the numbers that the run wrote" in " ".join(shown.split())) == (0, True)
    assert (tmp_path / "mine" / "report.md").is_file()
    own = json.loads((storage / "runs" / "r" / "report" / "results.json").read_text())
    assert json.loads((tmp_path / "mine" / "results.json").read_text()) == own
    assert {path: path.stat().st_mtime_ns for path in storage.rglob("*")} == before


def test_the_page_is_written_beside_the_report(console, storage, tmp_path, monkeypatch):
    monkeypatch.setattr("condu_ray.report.inspect_plots.png", lambda figure: b"a picture")
    code, shown, _ = console("inspect", "--images", "4", "--method", "zero-shot")
    assert code == 0
    assert (storage / "runs" / "r" / "report" / "inspect.html").read_text().startswith("<!DOCTYPE html>")
    assert "inspect.html" in shown
    settings, page = storage / "runs" / "r" / "config.json", storage / "runs" / "r" / "report" / "inspect.html"
    change = lambda *_: "a page" * settings.write_text(settings.read_text() + " ")  # noqa: E731
    monkeypatch.setattr("condu_ray.use.inspect.inspected", change)
    code, _, error = console("inspect")
    assert (code, "r: was changed meanwhile" in error, page.exists()) == (2, True, False)
    assert console("inspect", "--output", tmp_path / "x.txt")[0] == 2
    assert "is no user's home" in console("inspect", "--output", "~nobody0/x.html")[2]
    assert console("inspect", "--images", "-1")[0] == 2
