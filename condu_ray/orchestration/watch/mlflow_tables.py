"""The tables of a new SQLite file of MLflow's, which appears with all of them or not at all.

MLflow makes them by forty migrations, of which each may be half done when its process is killed, and which know of
nobody else: a file that is left so is never mended, and of two processes that begin at once one fails, or both.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.parse import unquote

from condu_ray.orchestration.watch.mlflow_address import sqlite_uri
from condu_ray.store.backend import backend
from condu_ray.store.posix_drafts import draft_of


def make_tables(uri: str) -> None:
    """Makes a SQLite file that is not there, beside its place, and puts it there unless another is by then.

    Args:
        uri: MLflow's address; where it is no SQLite file's, or one that is there, nothing is done.

    Raises:
        Exception: whatever MLflow says of a place where it cannot be made.
    """
    scheme, _, rest = uri.partition(":///")
    path = Path(unquote(rest.partition("?")[0]))
    if scheme.split("+")[0] != "sqlite" or path.exists():
        return
    from mlflow import MlflowClient

    folder = draft_of(path)  # of what a kill leaves there, a journal too, nobody reads anything
    folder.mkdir(parents=True)
    made = folder / "made.db"
    try:
        MlflowClient(tracking_uri=sqlite_uri(made)).search_experiments(max_results=1)
        backend(path).create(path, made.read_bytes())  # a copy, for a connection has the file open
    finally:
        shutil.rmtree(folder, ignore_errors=True)
