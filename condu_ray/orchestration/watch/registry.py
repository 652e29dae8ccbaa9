"""MLflow's model registry: a bundle as a version of a model, which `mlflow.pyfunc.load_model` predicts with."""

from __future__ import annotations

import io
from importlib.metadata import version
from pathlib import Path
from typing import Any

from condu_ray import __file__ as package
from condu_ray.config import Experiment, Tracking
from condu_ray.orchestration.watch.mlflow_address import TrackingError, shown_uri, tracking_uri, unreachable
from condu_ray.orchestration.watch.mlflow_experiment import open_experiment
from condu_ray.store.location import Place, given
from condu_ray.use.served import Served

CODE = "bundle_model.py"
"""What MLflow copies, and runs where it loads the model."""
NEEDS = (
    "torch", "torchvision", "open_clip_torch", "pyarrow", "pydantic", "pydantic-settings", "PyYAML", "safetensors",
    "numpy", "pillow", "rich", "matplotlib", "scipy", "pandas",
)  # fmt: skip
"""What predicting with a bundle needs, at the versions that made it: no Ray."""


def require_registry(uri: str | None, storage: str | Place) -> None:
    """Makes sure that somebody answers where a bundle is to be registered, before it is made.

    Args:
        uri: MLflow's address; None: MLFLOW_TRACKING_URI, or the storage's own file.
        storage: whose own file that is.

    Raises:
        TrackingError: the address is none, or nobody answers there.
    """
    config = Experiment(storage=given(str(storage)), tracking=Tracking(uri=uri))
    if why := unreachable(tracking_uri(config)):
        raise TrackingError(f"MLflow at {shown_uri(config)}: {why}")


def register_bundle(
    folder: Path, name: str, served: Served, uri: str | None = None, storage: str | Place = "storage"
) -> str:
    """Logs a bundle as a pyfunc model and registers it as the next version of a name.

    Args:
        folder: the bundle.
        name: of the registered model; made where there is none.
        served: what the bundle was made of: method, session and accuracies become the version's tags.
        uri: MLflow's address; None: MLFLOW_TRACKING_URI, or the storage's own file.
        storage: whose own file that is.

    Returns:
        A line for people: the version, and how it is loaded.

    Raises:
        TrackingError: the address is none, or nobody answers there.
    """
    import mlflow

    config = served.method.config
    tracking = config.tracking.model_copy(update={"uri": uri} if uri else {})
    config = config.model_copy(update={"tracking": tracking, "storage": given(str(storage))})
    client, experiment = open_experiment(config)
    address = shown_uri(config)  # before MLflow writes MLFLOW_TRACKING_URI, which would be taken for the user's
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(tracking_uri(config))
    try:
        with mlflow.start_run(experiment_id=experiment, run_name=f"bundle of {served.name}"):
            logged = mlflow.pyfunc.log_model(
                name="bundle",
                python_model=str(Path(__file__).with_name(CODE)),
                artifacts={"bundle": str(folder.absolute())},
                code_paths=[str(Path(package).parent)],
                pip_requirements=_requirements(),
                signature=_signature(),
                input_example=_example(served),
                registered_model_name=name,
            )
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None: as if nobody had set one
    number = str(logged.registered_model_version)
    for key, value in _tags(served).items():
        client.set_model_version_tag(name, number, key, value)
    return f"MLflow at {address}: models:/{name}/{number}"


def _requirements() -> list[str]:
    """`NEEDS` at their versions; without the mark of a build (`+cpu`, `+cu128`), which only its own index has."""
    return [f"{one}=={version(one).partition('+')[0]}" for one in NEEDS]


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    kinds = {"class": "string", "probability": "double", "task": "string", "similarity": "double", "error": "string"}
    asked = Schema([ColSpec("binary", "image"), ColSpec("string", "task", required=False)])
    return ModelSignature(asked, Schema([ColSpec(kind, name, required=False) for name, kind in kinds.items()]))


def _example(served: Served) -> Any:
    import pandas as pd
    from PIL import Image

    buffer = io.BytesIO()
    height, width = served.backbone.spec.image_size
    Image.new("RGB", (width, height), (127, 127, 127)).save(buffer, "PNG")
    return pd.DataFrame({"image": [buffer.getvalue()], "task": [served.state.tasks[-1]]})


def _tags(served: Served) -> dict[str, str]:
    """What a version is told apart by: where it comes from, and its accuracies in percent."""
    tasks = served.state.tasks
    found = {
        "run": str(served.about.get("run", "")), "method": served.method.name, "session": str(len(tasks)),
        "tasks": ",".join(tasks), "state": served.state.id, "backbone": served.backbone.fingerprint,
    }  # fmt: skip
    for protocol, values in served.about.get("accuracy", {}).items():
        found |= {f"accuracy/{protocol}/{task}": f"{value:.2f}" for task, value in values.items()}
        learned = [value for task, value in values.items() if task in tasks]
        if learned:
            found[f"accuracy/{protocol}"] = f"{sum(learned) / len(learned):.2f}"
    return found
