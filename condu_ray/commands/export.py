"""Hand on what was learned: one task's model for other tools, or all of it as a bundle."""

from collections.abc import Sequence

from condu_ray.command_line import ConfigError
from condu_ray.commands.job import job
from condu_ray.commands.using import run_parser, served
from condu_ray.console import output
from condu_ray.store.location import given


@job("the run is as it was; the folder is there whole or not at all, and where it is not, the same command makes it")
def main(argv: Sequence[str] | None = None) -> None:
    """Writes the folder; nothing may be there before."""
    parser = run_parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--task", help="export the model that answers for this task, to --to")
    what.add_argument("--merged", action="store_true", help="export the one model that the method has, to --to")
    what.add_argument("--bundle", metavar="DIR", help="write all of it as one folder: Predictor and predict load it")
    parser.add_argument("--to", metavar="DIR", help="folder of the model")
    parser.add_argument(
        "--format", default="open_clip", choices=("open_clip", "hf", "peft"),
        help="open_clip (default); hf: Hugging Face's CLIPModel; peft: a LoRA adapter, of what is low-rank",
    )  # fmt: skip
    parser.add_argument(
        "--theta0", default="include", choices=("include", "reference"),
        help="whether a bundle holds the pretrained weights, or names their tag (default: include)",
    )  # fmt: skip
    parser.add_argument("--mlflow", metavar="NAME", help="register the bundle in MLflow as a version of this model")
    parser.add_argument("--tracking_uri", help="MLflow's address; default: MLFLOW_TRACKING_URI, or storage's own file")
    arguments = parser.parse_args(argv)
    if (arguments.to is None) != (arguments.bundle is not None):
        raise ConfigError("--to DIR: belongs to --task and --merged; --bundle has its own folder")
    if arguments.bundle is None and (arguments.mlflow or arguments.theta0 == "reference"):
        raise ConfigError("--mlflow and --theta0: are for a --bundle")
    for name in ("mlflow", "tracking_uri"):
        if getattr(arguments, name) is not None and not getattr(arguments, name).strip():
            raise ConfigError(f"--{name}: is empty; give a value, or leave it out")
    if arguments.tracking_uri and not arguments.mlflow:
        raise ConfigError("--tracking_uri: is for --mlflow NAME")
    if arguments.bundle is not None and arguments.format != "open_clip":
        raise ConfigError(f"--format {arguments.format}: is for --task and --merged; a bundle has a form of its own")
    from condu_ray.plan.opened import run_place
    from condu_ray.store.artifacts import local
    from condu_ray.use.bundle import is_bundle, sizes, write_bundle
    from condu_ray.use.export import export_model

    folder = given(arguments.bundle or arguments.to)
    storage = given(arguments.storage)
    if arguments.mlflow:
        from condu_ray.orchestration.watch.registry import register_bundle, require_registry

        if not is_bundle(given(arguments.run)):
            storage, _ = run_place(arguments.run, arguments.storage)  # of a run by its folder: its own
        require_registry(arguments.tracking_uri, storage)
    loaded = served(arguments)
    if arguments.bundle is not None:
        write_bundle(loaded, folder, arguments.theta0)
    else:
        export_model(loaded, folder, arguments.task, arguments.format)
    console = output()
    console.print(f"{folder}: {arguments.task or 'all'} of {loaded.name}")
    for name, size in sizes(folder).items():
        console.print(f"  {size / 1e6:10.3f} MB  {name}")
    if arguments.mlflow:
        console.print(register_bundle(local(folder), arguments.mlflow, loaded, arguments.tracking_uri, storage))
