"""Where MLflow is: its address as a person gives it, made one that every process understands, and a look at it."""

from __future__ import annotations

import os
import re
import socket
import ssl
import urllib.request
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import SplitResult, quote, unquote, urlsplit

from condu_ray.config import Experiment
from condu_ray.names import nearest
from condu_ray.settings import content_hash
from condu_ray.store.backend import on_disk
from condu_ray.store.layout import mlflow_database
from condu_ray.store.passwords import without_passwords

PORTS = {"http": 80, "https": 443, "mysql": 3306, "postgresql": 5432, "mssql": 1433}
"""Servers that a run can log to, and where they listen."""
CLOUDS = ("databricks", "databricks-uc", "uc")
LOOK_SECONDS, ANSWER_SECONDS = 3.0, 10.0
"""How long a server may take to be there, and to answer a request that costs it nothing."""
ASKED = "api/2.0/mlflow/experiments/get-by-name?experiment_name=condu_ray"
"""A question that reads the server's store, whether there is such an experiment or not."""
_GIVE = "give http://host:port of a server, or sqlite:///PATH/mlflow.db"


class TrackingError(ValueError):
    """MLflow's address is none, or its experiment cannot be logged to; the message says what to give."""


def sqlite_uri(path: os.PathLike[str] | str) -> str:
    """Returns the address of a SQLite file, whatever signs its path has."""
    plain = str(Path(path).absolute())
    quoted = quote(plain)
    # For `sqlite:` MLflow also makes the file's folder, by the address as it stands, with %20 in its name.
    return f"sqlite:///{plain}" if quoted == plain else f"sqlite+pysqlite:///{quoted}"


def own_folder(config: Experiment) -> Path:
    """Returns the folder of MLflow's default store: storage or, where that is a bucket, one of this machine's user."""
    if (folder := on_disk(config.storage)) is not None:
        return folder
    home = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return Path(home, "condu_ray", content_hash(str(config.storage))[:16]).absolute()


def own_uri(config: Experiment) -> str:
    """Returns the address of the SQLite file in that folder."""
    return sqlite_uri(mlflow_database(own_folder(config)))


def elsewhere(config: Experiment) -> list[str]:
    """Returns what a run says first where its default store is not in storage, or not there alone, a line."""
    if not config.tracking.enabled or tracking_uri(config) != own_uri(config):
        return []
    if on_disk(config.storage) is not None:
        path = mlflow_database(own_folder(config))
        if not path.exists() or path.stat().st_nlink == 1:
            return []
        return [
            f"MLflow logs to {path}, which has other names, of a copy by hard links (cp -al): what is logged is in all "
            f"of them; to part them, while nothing logs: cp {path} {path}.own && mv {path}.own {path}"
        ]
    own_folder(config).mkdir(parents=True, exist_ok=True)
    return [
        f"MLflow logs to {own_uri(config)}, on this machine: its database cannot lie in a bucket; MLFLOW_TRACKING_URI "
        "gives a server, which runs of several machines need"
    ]


def tracking_uri(config: Experiment) -> str:
    """Returns the tracking URI: the config's, MLFLOW_TRACKING_URI, or the SQLite file of `own_folder`.

    Raises:
        TrackingError: what is given is no address of MLflow.
    """
    given = (config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or "").strip()
    return _checked(given) if given else own_uri(config)


def shown_uri(config: Experiment) -> str:
    """Returns the tracking URI without a password."""
    return without_passwords(tracking_uri(config))


def check_tracking(config: Experiment) -> None:
    """Refuses an address that cannot be one; looks at no server.

    Raises:
        TrackingError: as `tracking_uri`, where the run is to be logged.
    """
    if config.tracking.enabled:
        tracking_uri(config)


def _checked(uri: str) -> str:
    """Returns an address that is the same in every working directory."""
    name = f"--tracking.uri or MLFLOW_TRACKING_URI {without_passwords(uri)!r}"
    if re.fullmatch(r"(localhost|[\w-]+(\.[\w-]+)+|[\w-]+:\d+)(:\d+)?(/\S*)?", uri) and not uri.endswith(".db"):
        raise TrackingError(f"{name}: begins with no scheme; write http://{without_passwords(uri)}")
    scheme, colon, rest = uri.partition(":")
    kind = scheme.lower().split("+")[0]
    if kind in CLOUDS:
        return uri
    if not colon or not rest.startswith("//") or kind == "file":
        raise TrackingError(f"{name}: MLflow keeps no runs in a plain folder or file; {_GIVE}")
    if kind == "sqlite":
        return _absolute(uri, name)
    if kind in PORTS:
        try:
            parts = urlsplit(uri)
            good = bool(parts.hostname) and (parts.port is None or parts.port > 0)
        except ValueError:
            good = False
        if not good and kind in ("http", "https"):
            raise TrackingError(f"{name}: names no host, or no port; {_GIVE}")
        return uri
    plugins = [one.name for one in entry_points(group="mlflow.tracking_store")]
    if scheme in plugins:
        return uri
    known = [*PORTS, "sqlite", *CLOUDS, *plugins]
    raise TrackingError(f"{name}: MLflow knows no {scheme}://{nearest(scheme, known)}; {_GIVE}")


def _absolute(uri: str, name: str) -> str:
    """Returns the address of a SQLite file by its absolute path: Ray's processes work in folders of their own."""
    _, slashes, rest = uri.partition(":///")
    path, query, options = rest.partition("?")
    if not slashes or not path or path == ":memory:":
        raise TrackingError(f"{name}: names no file, so that nothing would be kept; give sqlite:///PATH/mlflow.db")
    if path.startswith("/"):
        return uri
    return f"{sqlite_uri(os.path.expanduser(unquote(path)))}{query}{options}"


def unreachable(uri: str) -> str | None:
    """Returns why nobody answers at a server's address, or None where somebody does, or where it is no server.

    MLflow's own client tries a server that is not there, or hangs, for minutes before it says so.
    """
    parts = urlsplit(uri)
    kind = parts.scheme.split("+")[0]
    if kind not in PORTS or not parts.hostname:
        return None
    if kind in urllib.request.getproxies() and not urllib.request.proxy_bypass(parts.hostname):
        return None
    try:
        socket.create_connection((parts.hostname, parts.port or PORTS[kind]), timeout=LOOK_SECONDS).close()
    except OSError as error:
        return f"no server answers there ({error.strerror or error}); start it, or give another --tracking.uri"
    return _wrong(parts)


def _wrong(parts: SplitResult) -> str | None:
    """Returns what is wrong with a server that hangs, or fails at whatever it is asked; None for any other answer.

    A refusal is an answer, and MLflow's client says why it was one. Who speaks another protocol is not asked.
    """
    host, port = str(parts.hostname), parts.port or PORTS.get(parts.scheme)
    if parts.scheme == "http":
        asked = HTTPConnection(host, port, timeout=ANSWER_SECONDS)
    elif parts.scheme == "https":
        asked = HTTPSConnection(host, port, timeout=ANSWER_SECONDS, context=ssl._create_unverified_context())
    else:
        return None
    try:
        asked.request("GET", f"{parts.path.rstrip('/')}/{ASKED}")  # /health is well where the store behind it is not
        found = asked.getresponse()
    except TimeoutError:
        return "the server there hangs; start it anew, or give another --tracking.uri"
    except (OSError, HTTPException):  # as of a certificate: MLflow's client says what is wrong
        return None
    finally:
        asked.close()
    if found.status < 500:
        return None
    return (
        f"the server there fails, with {found.status} {found.reason}; its own log says why, or give another "
        "--tracking.uri"
    )
