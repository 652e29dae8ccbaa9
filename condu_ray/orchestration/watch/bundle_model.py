"""The code of a registered model: MLflow runs this file when it loads one, and asks what it sets here."""

from __future__ import annotations

from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel

from condu_ray.use.predictor import Predictor

ANSWER = ("class", "probability", "task", "similarity", "error")
"""Columns of the answers, in a frame without rows too."""


class BundleModel(PythonModel):
    """Predicts with a bundle: a row of `image` (encoded bytes) and, optional, `task` gives a row of answers."""

    def load_context(self, context: Any) -> None:
        """Loads the bundle that the model was logged with."""
        self._predictor = Predictor.load(context.artifacts["bundle"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Returns `class`, `probability`, `task`, `similarity` and `error`; one task's rows are predicted together."""
        frame = model_input.reset_index(drop=True)
        tasks = frame["task"] if "task" in frame else pd.Series([None] * len(frame))
        tasks = tasks.where(tasks.notna() & (tasks != ""), "")
        pictures = frame["image"].where(frame["image"].notna(), b"")  # a missing one is a broken one
        found: dict[int, dict[str, Any]] = {}
        for task in dict.fromkeys(tasks):
            rows = frame.index[tasks == task]
            images = [bytes(image) for image in pictures[rows]]
            predictions = self._predictor.predict(images, task or None, top_k=1, errors="keep")
            for row, one in zip(rows, predictions, strict=True):
                found[int(row)] = {
                    "class": one.label, "probability": one.probability, "task": one.task,
                    "similarity": one.similarity, "error": one.error,
                }  # fmt: skip
        return pd.DataFrame([found[row] for row in range(len(frame))], index=model_input.index, columns=list(ANSWER))


mlflow.models.set_model(BundleModel())
