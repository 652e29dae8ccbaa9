"""Merge an expert that was fine-tuned elsewhere into a run, or begin a run with it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from condu_ray.command_line import EXIT_CODES, ConfigError, Parser, parse
from condu_ray.commands.job import job
from condu_ray.commands.using import max_drop, max_drop_flag, run_flags
from condu_ray.config import Experiment
from condu_ray.console import output
from condu_ray.store.location import Location, LocationError, given, home


@job()
def main(argv: Sequence[str] | None = None) -> None:
    """Imports the expert, merges it on trial, and keeps it unless a learned task would lose too much (exit code 1)."""
    more = f"A run that is not there yet takes all flags of `condu-ray run` beside these. {EXIT_CODES}"
    parser = Parser(__doc__, epilog=more)
    parser.add_argument("run", help="a run's name in --storage, or its folder; a new name begins a run")
    parser.add_argument("--task", required=True, help="the task that the expert was fine-tuned on")
    parser.add_argument(
        "--checkpoint",
        required=True,
        help="open_clip or OpenAI state dict (.safetensors, .pt), or a LoRA folder of PEFT",
    )
    parser.add_argument(
        "--data",
        help="folder with the task, in any form, whatever the run has of that name; default: the run's own data",
    )
    parser.add_argument(
        "--method",
        help="which of the run's methods merge it, comma-separated; the run goes on without the others; default: all",
    )
    parser.add_argument(
        "--session", type=int, metavar="N", help="go on from the first N tasks; those after them count no more"
    )
    parser.add_argument("--storage", help="storage folder (default: storage)")
    max_drop_flag(parser)
    parser.others = run_flags()
    arguments, rest = parser.parse_known_args(argv)
    most = max_drop(arguments)
    from condu_ray.orchestration.changing import bring
    from condu_ray.orchestration.run import run
    from condu_ray.plan.imported import import_expert, with_expert
    from condu_ray.vlm.model import backbone_spec, load_backbone

    try:
        begun = config = _begun(arguments.run, arguments.storage)
        checkpoint = Path(home(arguments.checkpoint)).absolute()
        data = given(arguments.data).absolute() if arguments.data else None
    except LocationError as error:
        raise ConfigError(f"--checkpoint, --data or --storage: {error}") from error
    if not checkpoint.exists():
        raise ConfigError(f"--checkpoint {checkpoint}: no such file or folder")
    methods = tuple(name.strip() for name in arguments.method.split(",")) if arguments.method else None
    if config is None:
        if arguments.max_drop is not None:
            raise ConfigError(f"--max_drop: there is no run {arguments.run} yet, whose tasks could lose; leave it out")
        flags = ["--run", arguments.run, "--storage", arguments.storage or "storage", *rest]
        for name, value in (("--data", arguments.data), ("--method", arguments.method)):
            flags += [name, value] if value else []
        new = parse(flags, Experiment, __doc__ or "")
        config, data = new.model_copy(update={"tasks": new.tasks or (arguments.task,)}), None
    elif rest:
        raise ConfigError(
            f"{rest[0]}: the run has its settings already; --task, --checkpoint, --data and --method go here"
        )
    if arguments.session is not None:
        config = _earlier(config, arguments.session)
    before, config = config.method, with_expert(config, arguments.task, "", data, methods)
    backbone = load_backbone(backbone_spec(config.model, config.pretrained, config.preprocess))
    key, found = import_expert(config, backbone, arguments.task, checkpoint)
    console = output()
    sizes = ", ".join(f"{tower} {size:.4f}" for tower, size in found.relative.items())
    console.print(f"{arguments.task}: expert {key}; its delta's norm over theta0's: {sizes}")
    for note in found.notes:
        console.print(f"{checkpoint.name}: {note}")
    if left := [name for name in before if name not in config.method]:
        console.print(f"{config.run_name} goes on without {', '.join(left)}, whose sessions stay in its folder")
    config = with_expert(config, arguments.task, key)
    if begun is None:
        run(config)
        return
    bring(begun, config, arguments.task, most, arguments.session)


def _earlier(config: Experiment, session: int) -> Experiment:
    """Returns the settings of an earlier session of a run.

    Raises:
        ConfigError: the run is not there yet, or has not come so far.
    """
    from condu_ray.plan.changes import open_to_change, rolled_back
    from condu_ray.store.artifacts import is_file
    from condu_ray.store.layout import config_path

    if not is_file(config_path(config.run_folder)):
        raise ConfigError(f"--session {session}: there is no run {config.run_name} yet; leave it out")
    return rolled_back(open_to_change(config.storage, config.run_name), session)


def _begun(name: str, storage: str | None) -> Experiment | None:
    """Returns the settings of a run that is there, None for a new one."""
    from condu_ray.plan.changes import require_own
    from condu_ray.plan.stored import find
    from condu_ray.store import artifacts
    from condu_ray.store.layout import config_path, run_folder

    place = given(storage or "storage").absolute()
    folder = Path(home(name)).absolute()
    if artifacts.is_file(config_path(Location(folder))) and (
        storage is None or run_folder(place, folder.name) == folder
    ):
        place, name = Location(folder.parent.parent), folder.name
    elif "/" in name:
        raise ConfigError(f"{name}: no run's folder; give a name in --storage, or a folder with config.json")
    if not artifacts.is_file(config_path(run_folder(place, name))):
        return None
    found = find(place, name)
    if found.kind != "run":
        raise ConfigError(f"{name}: is a sweep, whose trials take what its command says; import into a run")
    require_own(place, name)
    return found.experiment(place).model_copy(update={"run": name})


if __name__ == "__main__":
    main(sys.argv[1:])
