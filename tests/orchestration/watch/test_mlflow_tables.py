"""The tables of a new SQLite file of MLflow's: all of them or no file, however many begin at once."""

import sqlite3
import threading

import mlflow
import pytest

from condu_ray.orchestration.watch.mlflow_address import sqlite_uri
from condu_ray.orchestration.watch.mlflow_tables import make_tables


class Store:
    """In place of MLflow's client, whose migrations take seconds: a table first, and another one later."""

    barrier = None

    def __init__(self, tracking_uri):
        self.path = tracking_uri.partition(":///")[2]

    def search_experiments(self, max_results):
        from urllib.parse import unquote

        with sqlite3.connect(unquote(self.path)) as store:
            store.execute("CREATE TABLE first (x)")
            if self.barrier is not None:
                self.barrier.wait(20)
            store.execute("CREATE TABLE last (x)")
        store.close()


def tables(path):
    with sqlite3.connect(path) as store:
        return [name for (name,) in store.execute("SELECT name FROM sqlite_master")]


@pytest.mark.parametrize("name", ["mlflow.db", "with a # and 100 %.db"])
def test_of_several_that_begin_at_once_each_finds_all_tables(tmp_path, monkeypatch, name):
    monkeypatch.setattr(mlflow, "MlflowClient", Store)
    monkeypatch.setattr(Store, "barrier", threading.Barrier(3))
    wrong = []

    def begin():
        try:
            make_tables(sqlite_uri(tmp_path / name))
            assert tables(tmp_path / name) == ["first", "last"]
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=begin) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == []
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_one_that_is_killed_leaves_no_file_of_that_name(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    class Ends:
        def wait(self, _):
            raise Killed

    monkeypatch.setattr(mlflow, "MlflowClient", Store)
    monkeypatch.setattr(Store, "barrier", Ends())
    with pytest.raises(Killed):
        make_tables(sqlite_uri(tmp_path / "mlflow.db"))
    assert not (tmp_path / "mlflow.db").exists()
    monkeypatch.setattr(Store, "barrier", None)
    make_tables(sqlite_uri(tmp_path / "mlflow.db"))
    assert tables(tmp_path / "mlflow.db") == ["first", "last"]


def test_what_is_there_or_no_file_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "mlflow.db").touch()
    monkeypatch.setattr(mlflow, "MlflowClient", lambda **_: pytest.fail("a store is made"))
    for uri in (sqlite_uri(tmp_path / "mlflow.db"), "http://127.0.0.1:5000", "postgresql://host/name"):
        make_tables(uri)
    assert (tmp_path / "mlflow.db").read_bytes() == b""
