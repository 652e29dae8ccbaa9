import pytest

from condu_ray.command_line import ConfigError, field_names, parse
from condu_ray.config import Experiment, Sweep
from condu_ray.recipes import RECIPES
from condu_ray.store.location import Location


def test_defaults_are_the_recipes():
    assert parse([]) == RECIPES["mini_mtil"]()
    assert parse(["--data", "somewhere"]).recipe == "own_data"
    assert parse(["--data", "somewhere", "--recipe", "mini_mtil"]).recipe == "mini_mtil"
    assert parse(["--recipe", "own_data"]).training.steps == RECIPES["own_data"]().training.steps


def test_flags_win_over_yaml_and_yaml_over_the_recipe(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("recipe: own_data\nmethod: condu,sequential\ntraining: {steps: 7, lr: 0.01}\n")
    found = parse(["--config", str(path), "--training.lr", "0.5", "--tasks", "a,b"])
    assert found.recipe == "own_data"
    assert found.method == ("condu", "sequential")
    assert (found.training.steps, found.training.lr) == (7, 0.5)
    assert found.tasks == ("a", "b")
    assert found.training.batch_size == RECIPES["own_data"]().training.batch_size


def test_a_sweep_s_yaml_has_numbers_and_texts_as_the_command_line_has_them(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("orders: 12\nsweep: training.lr=1e-4,3e-4\n")
    found = parse(["--config", str(path)], Sweep)
    flags = parse(["--orders", "12", "--sweep", "training.lr=1e-4,3e-4"], Sweep)
    assert (found.orders, found.sweep) == (flags.orders, flags.sweep) == ("12", ("training.lr=1e-4", "3e-4"))
    path.write_text("orders: yes\n")
    with pytest.raises(ConfigError, match="orders: Input should be a valid string"):
        parse(["--config", str(path)], Sweep)


def test_lists_and_rates_by_task_are_written_with_commas():
    lists = ("--lora.targets", "mlp,attention", "--distillation.reference", "a/b,c.parquet")
    found = parse([*lists, "--lora.lr_by_task", "a=5e-5,b=1e-3", "--training.lr_by_task", "a=1e-6"])
    assert found.lora.targets == ("mlp", "attention")
    assert found.distillation.reference == (Location("a/b"), Location("c.parquet"))
    assert found.lora.lr_by_task == {"a": 5e-5, "b": 1e-3}
    assert found.training.lr_by_task == {"a": 1e-6}
    several = ("--training.lr_by_task", '{"a": 1e-4}', "--training.lr_by_task", "b=2", "--task_data", 'a="x,a=y",b=z')
    found = parse([*several, "--template", "{}"])
    assert found.training.lr_by_task == {"a": 1e-4, "b": 2}
    assert found.task_data == {"a": Location("x,a=y"), "b": Location("z")}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--trainin.steps", "3"], ["--trainin.steps", "training.steps"]),
        (["--training.stesp", "3"], ["training.steps"]),
        (["--training.lr_by_task", "a=1,b=2,a=2"], ["training.lr_by_task: a is there twice", "keep one"]),
        (["--lora.lr_by_task", "a=1", "--lora.lr_by_task", "b=2, a=1"], ["lora.lr_by_task: a is there twice"]),
        (["--training.lr_by_task", '{"a": 1}', "--training.lr_by_task", "a=2"], ["a is there twice"]),
        (["--training", '{"lr_by_task": {"a": 1, "a": 2}}'], ["training: a is there twice"]),
        (["--task_data", "a=x,a=y"], ["task_data: a is there twice"]),
        (["--methods", "condu"], ["did you mean method"]),
        (["--steps", "3"], ["training.steps"]),
        (["--storage", ""], ["storage", "is empty; give the name of a folder"]),
        (["--data", " "], ["data", "is empty; give the name of a folder"]),
        (["--recipe", ""], ["command line: recipe: is empty"]),
        (["--model", " "], ["model: is empty"]),
        (["--pretrained", ""], ["pretrained: is empty"]),
        (["--cluster.address", ""], ["cluster.address: is empty"]),
        (["condu"], ["condu", "--name value"]),
        (["--training.steps", "many"], ["training.steps", "integer", "many"]),
        (["--training.steps", "0"], ["training.steps", "greater"]),
        (["--training.lr", "-1"], ["training.lr"]),
        (["--training.precision", "fp8"], ["precision", "fp8"]),
        (["--training.workers", "3"], ["batch_size", "not divisible", "workers 3"]),
        (["--training.warmup", "1"], ["training.warmup"]),
        (["--merging.rescaler", "l2"], ["rescaler", "l2"]),
        (["--inference.top_k", "0"], ["inference.top_k"]),
        (["--merging.ties_density", "0"], ["merging.ties_density", "greater"]),
        (["--merging.wise_alpha", "1.5"], ["merging.wise_alpha", "less"]),
        (["--lora.rank", "0"], ["lora.rank", "greater"]),
        (["--lora.targets", "mlp,mlp"], ["lora.targets", "mlp more than once"]),
        (["--lora.targets", "mlp,embedding"], ["lora.targets", "'attention'", "embedding"]),
        (["--lora.merge", "product"], ["lora.merge", "'factors'", "product"]),
        (["--pam.merge", "emr"], ["pam.merge", "'task-arithmetic'", "emr"]),
        (["--pam.top_percent", "101"], ["pam.top_percent", "100"]),
        (["--pam.align_to", "one"], ["pam.align_to", "'global'", "one"]),
        (["--distillation.temperature", "0"], ["distillation.temperature", "greater"]),
        (["--distillation.references", "a"], ["did you mean distillation.reference"]),
        (["--replay.per_class", "0"], ["replay.per_class", "greater"]),
        (["--shots", "0"], ["shots", "greater"]),
        (["--label_space", "all"], ["label_space", "'union'", "all"]),
        (["--label_space", "union", "--protocol", "own"], ["command line", "label_space union", "task,union", "own"]),
        (["--protocol", "all"], ["protocol", "'xtail'", "all"]),
        (["--label-space", "union"], ["did you mean label_space"]),
        (["--recipe", "mini-mtil"], ["unknown recipe", "mini_mtil"]),
        (["--tasks", "a,b,a"], ["tasks", "a", "more than once"]),
        (["--method", ","], ["method", "empty"]),
        (["--run", "../up"], ["run", "pattern"]),
        (["--run", ".hidden"], ["run", "pattern"]),
        (["--seed", "-1"], ["seed"]),
        (["--config", "no-such.yaml"], ["no-such.yaml", "no such file"]),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments, words):
    with pytest.raises(ConfigError) as caught:
        parse(arguments)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trainin: {steps: 3}", ["trainin", "did you mean"]),
        ("training: {stesp: 3}", ["training.stesp", "training.steps"]),
        ("training: {steps: x}", ["training.steps", "x"]),
        ("training.steps: 3", ["training.steps: write steps below a line 'training:'"]),
        ("[a, b]", ["mapping", "list"]),
        ("a: [", ["YAML"]),
        ("training: 3", ["training"]),
        ("recipe: nothing", ["unknown recipe"]),
        ("tracking: {uri: ''}", ["tracking.uri: is empty"]),
        ("shots: yes", ["shots", "truth value", "give a number"]),
        ("lora: {lr: true}", ["lora.lr", "truth value"]),
        ("cluster: {gpus_per_worker: on}", ["cluster.gpus_per_worker", "truth value"]),
        ("training: {lr_by_task: {mnist: yes}}", ["training.lr_by_task", "truth value for mnist"]),
        ("training: {steps: 0100}", ["0100 is 64 in YAML", "line 1, column 19"]),
        ("seed: 1:30", ["1:30 is 90 in YAML"]),
    ],
)
def test_wrong_yaml_is_refused_by_name(tmp_path, text, words):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        parse(["--config", str(path)])
    for word in words:
        assert word in str(caught.value)


def test_help_shows_every_field_with_its_meaning(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    shown = capsys.readouterr().out
    for name in field_names():
        assert f"--{name}" in shown
    assert "Optimizer steps per task" in shown


def test_a_line_is_read_as_if_none_had_been_before(capsys, monkeypatch):
    refused = [["--training.lr_by_task", "a=1,a=2"], ["--trainin.steps", "3"], ["--training.lr_by_task", "a=x"]]
    for kind, name, purpose in ((Experiment, "first", "Does one."), (Sweep, "second", "Does two."),
                                (Experiment, "third", "Does three.")):  # fmt: skip
        monkeypatch.setattr("sys.argv", [name])
        assert parse(["--tasks", "a", "--training.lr_by_task", "a=1"], kind).training.lr_by_task == {"a": 1}
        said = []
        for arguments in refused:
            with pytest.raises(ConfigError) as caught:
                parse(arguments, kind)
            said.append(str(caught.value))
        assert ["a is there twice" in said[0], "unknown flag --trainin.steps" in said[1]] == [True, True]
        with pytest.raises(SystemExit):
            parse(["--help"], kind, purpose)
        shown = capsys.readouterr().out
        assert shown.startswith(f"usage: {name} [--recipe")
        assert [one for one in ("Does one.", "Does two.", "Does three.") if one in shown] == [purpose]
        assert parse([], kind) == kind.model_validate(RECIPES["mini_mtil"]().model_dump())


def test_every_field_has_a_docstring():
    def walk(model):
        for name, field in model.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and hasattr(inner, "model_fields"):
                assert inner.__doc__
                walk(inner)
            else:
                assert field.description, name

    walk(Experiment)


@pytest.mark.parametrize(
    ("arguments", "file", "protocol", "said"),
    [
        ([], "", ("task",), []),
        (["--protocol", "task,own,union"], "", ("task", "own", "union"), []),
        (
            ["--label_space", "union"],
            "",
            ("task", "union"),
            ["label_space union is an old name", "protocol task,union"],
        ),
        ([], "label_space: union", ("task", "union"), ["--config", "label_space union"]),
        (["--protocol", "own"], "label_space: union", ("own",), ["label_space union"]),  # flags win, as ever
        (["--label_space", "task"], "protocol: [own]", ("task",), ["command line: label_space task"]),
        (["--recipe", "xtail"], "", ("xtail",), []),
        (["--recipe", "xtail", "--label_space", "union"], "", ("task", "union"), ["label_space union"]),
    ],
)
def test_an_old_name_is_read_and_said_to_be_one(tmp_path, capsys, arguments, file, protocol, said):
    path = tmp_path / "settings.yaml"
    path.write_text(file)
    assert parse([*arguments, "--config", str(path)]).protocol == protocol
    heard = capsys.readouterr().err
    assert bool(heard) == bool(said)
    for words in said:
        assert words in heard
