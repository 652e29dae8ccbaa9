"""A new SQLite store of MLflow is made once a process, and copied: its migrations take seconds."""

import sqlite3

import pytest
from mlflow.store.db import utils

from condu_ray.orchestration.watch import mlflow_patience

MADE = []
"""The first store that was made here, empty, in memory."""
INITIALISE = utils._initialize_tables


def initialise(engine):
    with sqlite3.connect(engine.url.database) as store:
        if MADE:
            MADE[0].backup(store)
            return
        INITIALISE(engine)
        MADE.append(sqlite3.connect(":memory:", check_same_thread=False))
        store.backup(MADE[0])


@pytest.fixture(autouse=True)
def made_once(monkeypatch):
    monkeypatch.setattr(utils, "_initialize_tables", initialise)


@pytest.fixture
def own_store(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """No server was given up by another test."""
    monkeypatch.setattr(mlflow_patience, "_given_up", set())
