"""What Ray cannot work in is refused before it starts, in a sentence that says what to set."""

import os
import signal
import socket
import subprocess
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

import grpc
import pytest
from ray._private import grpc_utils

from condu_ray.orchestration.cluster import env
from condu_ray.orchestration.cluster.surroundings import (
    SOCKET_BYTES,
    SurroundingsError,
    check_surroundings,
    check_token,
)
from condu_ray.orchestration.watch.lines import Lines


def closed_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


BAD = {
    "Train V1": ("local", {"RAY_TRAIN_V2_ENABLED": "0"}, ["RAY_TRAIN_V2_ENABLED=0", "unset it"]),
    "Train V1 in words": ("auto", {"RAY_TRAIN_V2_ENABLED": "false"}, ["RAY_TRAIN_V2_ENABLED=false", "unset it"]),
    "an interval that is no number": (
        "local", {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "soon"}, ["INTERVAL_S=soon", "no number", "unset it"],
    ),
    "threads that are no number": ("local", {"OMP_NUM_THREADS": "all"}, ["OMP_NUM_THREADS=all", "no number"]),
    "no threads": ("local", {"OMP_NUM_THREADS": "0"}, ["OMP_NUM_THREADS=0", "above 0"]),
    "a long TMPDIR": ("local", {"TMPDIR": "/tmp/" + "x" * 60}, ["TMPDIR=/tmp/xx", "65 bytes", "set RAY_TMPDIR"]),
    "a long TMPDIR of few signs": ("local", {"TMPDIR": "/tmp/" + "é" * 25}, ["55 bytes", "set RAY_TMPDIR"]),
    "a long RAY_TMPDIR": ("local", {"RAY_TMPDIR": "/" + "x" * 60, "TMPDIR": "/tmp"}, ["RAY_TMPDIR=/xx", "61 bytes"]),
    "a TMPDIR that is a file": ("local", {"TMPDIR": "/dev/null"}, ["TMPDIR=/dev/null", "set RAY_TMPDIR"]),
    "a cluster that is gone": ("127.0.0.1:{port}", {}, ["127.0.0.1:", "no cluster answers", "refused", "`local`"]),
    "a client's cluster that is gone": ("ray://127.0.0.1:{port}", {}, ["ray://127.0.0.1:", "no cluster answers"]),
    "a host that nobody knows": ("no-such-host.invalid:6379", {}, ["no-such-host.invalid:6379", "no cluster answers"]),
    "an address without a port": ("10.0.0.1", {}, ["10.0.0.1", "no address", "host:port"]),
    "a port that is none": ("10.0.0.1:99999", {}, ["99999", "no address"]),
    "the dashboard's address": ("http://127.0.0.1:8265", {}, ["http://127.0.0.1:8265", "no address", "ray://"]),
    "words": ("the big one", {}, ["the big one", "no address"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_ray_cannot_work_in_is_refused_by_name(case):
    address, variables, words = BAD[case]
    begin = time.monotonic()
    with pytest.raises(SurroundingsError) as error:
        check_surroundings(address.format(port=closed_port()), variables)
    assert time.monotonic() - begin < 30
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


GOOD = [
    ("local", {}), ("auto", {}), ("local", {"RAY_TRAIN_V2_ENABLED": "1", "OMP_NUM_THREADS": "2,1"}),
    ("local", {"CUDA_VISIBLE_DEVICES": ""}), ("local", {"TMPDIR": "/tmp/" + "x" * 90, "RAY_TMPDIR": "/tmp"}),
]  # fmt: skip


@pytest.mark.parametrize(("address", "variables"), GOOD)
def test_what_it_can_work_in_is_not(address, variables):
    check_surroundings(address, variables)


def test_a_folder_of_the_longest_name_still_has_room_for_rays_sockets():
    from ray._private.utils import validate_socket_filepath

    folder = "/tmp/" + "x" * 60
    with pytest.raises(SurroundingsError, match=r"at most (\d+) bytes") as error:
        check_surroundings("local", {"TMPDIR": folder})
    most = int(str(error.value).split("at most ")[1].split()[0])
    longest = folder[:most]
    check_surroundings("local", {"TMPDIR": longest})
    socket_of = f"{longest}/ray/session_2026-11-26_14-43-07_406123_4194304/sockets/plasma_store"
    validate_socket_filepath(socket_of)
    assert len(socket_of) > SOCKET_BYTES - 8


class Ray:
    """Stands for the package `ray`: notes what is asked of it."""

    def __init__(self, up=False, error=None, seconds=0.0):
        self.up, self.error, self.seconds, self.calls = up, error, seconds, []

    def is_initialized(self):
        return self.up

    def init(self, **options):
        self.calls.append("init")
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as Ray's own does, with a handler of its own
        time.sleep(self.seconds)
        if self.error:
            raise self.error

    def get_actor(self, name, namespace):
        return namespace, name

    def kill(self, actor):
        self.calls.append(actor)

    def shutdown(self):
        self.calls.append("shutdown")


@pytest.fixture
def ray(monkeypatch):
    import_module("ray._private.ray_constants")  # what stands for the package has no modules below it

    def use(**given):
        found = Ray(**given)
        monkeypatch.setitem(sys.modules, "ray", found)
        return found

    for name in ("RAY_ADDRESS", "TMPDIR", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("condu_ray.orchestration.watch.discovery.announced", env.nullcontext)
    return use


def test_a_cluster_that_a_notebook_has_joined_is_used_and_left_up_without_what_was_ours(ray, monkeypatch):
    found, util = ray(up=True), types.ModuleType("ray.util")
    mine, of_another_driver = {"namespace": env.namespace("n"), "name": "board"}, env.namespace("n")[:-8] + "01234567"
    others = [{"namespace": space, "name": "board"} for space in ("another", "condu_ray/n", of_another_driver)]
    util.list_named_actors = lambda all_namespaces: [mine, *others]
    monkeypatch.setitem(sys.modules, "ray.util", util)
    with env.ray_cluster(None, "n", Lines()):
        assert found.calls == []
    assert found.calls == [(env.namespace("n"), "board")]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("auto", ["joined", "192.0.2.1:6379"]),
        ("192.0.2.1:6379", ["192.0.2.1:6379", "joined"]),
        ("local", ["joined"]),
        ("ray://192.0.2.1:10001", ["joined"]),
    ],
)
def test_the_head_of_a_cluster_that_is_joined_is_watched(ray, monkeypatch, address, expected):
    """Not by `ray://`, often a tunnel to a cluster whose GCS nobody reaches from here, though Ray tells its address.

    Where its address is known before, it is watched while it is joined, too: Ray waits long, or ends without a word.
    """
    found, watched = ray(), []
    for check in ("check_surroundings", "check_token"):
        monkeypatch.setattr(env, check, lambda address: None)
    found.get_runtime_context = lambda: types.SimpleNamespace(gcs_address="192.0.2.1:6379")
    monkeypatch.setattr(env, "_init", lambda *_: watched.append("joined"))
    monkeypatch.setattr(env, "head_watched", lambda head, say: env.nullcontext(watched.append(head)))
    with env.ray_cluster(address, "n", Lines()):
        pass
    assert watched == expected


def test_a_job_may_say_our_settings_in_its_runtime_env():
    """As `ray job submit --runtime-env-json` and a RayJob's `runtimeEnvYAML` do; the job's processes have them, too."""
    script = (
        "import os\n"
        "from condu_ray.orchestration.cluster import env\n"
        "env.apply()\n"
        "from ray.runtime_env.runtime_env import _merge_runtime_env as merge\n"
        "jobs = {'working_dir': 'w', 'env_vars': {'RAY_TRAIN_ENABLE_PREEMPTION_WATCHER': '1'}}\n"
        "ours = {'env_vars': {name: os.environ[name] for name in env.SETTINGS}}\n"
        "found = merge(jobs, ours, override=os.getenv('RAY_OVERRIDE_JOB_RUNTIME_ENV') == '1')\n"
        "print(found['working_dir'], found['env_vars']['RAY_TRAIN_ENABLE_PREEMPTION_WATCHER'])"
    )
    given = os.environ | {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1"}
    ended = subprocess.run([sys.executable, "-c", script], timeout=60, check=True, capture_output=True, env=given)
    assert ended.stdout == b"w 1\n"


def test_two_drivers_of_runs_of_one_name_have_names_of_their_own():
    """Their storages may be two people's, on one cluster."""
    script = "from condu_ray.orchestration.cluster.env import namespace; print(namespace('n'), namespace('n'))"
    done = subprocess.run([sys.executable, "-c", script], timeout=60, check=True, capture_output=True, text=True)
    once, again = done.stdout.split()
    assert once == again != env.namespace("n")


def test_a_cluster_of_ones_own_ends_with_the_block_and_takes_no_signal(ray):
    found, before = ray(), signal.getsignal(signal.SIGTERM)
    with env.ray_cluster(None, "n", Lines()):
        assert signal.getsignal(signal.SIGTERM) == before
    assert found.calls == ["init", "shutdown"]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("no route"),
        RuntimeError("no route\nand a page more"),
        OSError("no route"),
        ValueError(),
        Exception("no route"),
        ConnectionAbortedError("Initialization failure from server:\nTraceback\n  a page\nno route\n"),  # of ray://
    ],
)
def test_what_ray_raises_at_its_start_is_one_sentence(ray, error):
    ray(error=error)
    why = r"((Initialization failure from server: )?no route|ValueError)"
    words = f"no Ray cluster can be started here: {why}; see --cluster.address"
    with pytest.raises(SurroundingsError, match=words), env.ray_cluster("local", "n", Lines()):
        pass


def test_a_cluster_that_asks_for_a_token_says_so(ray, monkeypatch):
    """Ray says only that it failed to connect; why is in what that came of."""
    monkeypatch.setattr(env, "check_surroundings", lambda address: None)
    error = ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379")
    error.__cause__ = RuntimeError("Failed to connect to GCS")
    error.__cause__.__context__ = Exception("RPC error: InvalidAuthToken: Authentication token is missing")
    ray(error=error)
    words = r"joined at 10\.0\.0\.1:6379: Failed to connect .*; it asks for a token: set RAY_AUTH_MODE=token"
    with pytest.raises(SurroundingsError, match=words), env.ray_cluster("10.0.0.1:6379", "n", Lines()):
        pass


def test_a_clients_cluster_that_asks_for_a_token_is_refused_at_once(monkeypatch):
    """Ray's own client tries for half a minute, and says that it took too long."""
    seen = []

    def answer(request, context):
        seen.append(dict(context.invocation_metadata()).get("authorization"))
        if seen[-1] != "Bearer right":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "Invalid or missing authentication token")
        return b""

    handlers = {"ClusterInfo": grpc.unary_unary_rpc_method_handler(answer)}
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("ray.rpc.RayletDriver", handlers)])
    address = f"ray://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    begin = time.monotonic()
    try:
        with pytest.raises(SurroundingsError, match=r"ray://127.* asks for a token, .*; set RAY_AUTH_MODE=token, and"):
            check_token(address)
        monkeypatch.setattr(grpc_utils, "init_grpc_channel", with_token)
        check_token(address)
    finally:
        server.stop(None).wait()
    assert [one == "Bearer right" for one in seen] == [False, True]  # Ray may have a token of its own here
    assert time.monotonic() - begin < 20
    check_token(address)  # where nobody is at all, as where another fault is, Ray says what it is
    check_token("auto")


def test_a_token_is_asked_for_before_a_cluster_is_joined(ray, monkeypatch):
    def refused(address):
        raise SurroundingsError(f"{address} asks")

    found = ray()
    monkeypatch.setattr(env, "check_surroundings", lambda address: None)
    monkeypatch.setattr(env, "check_token", refused)
    with (
        pytest.raises(SurroundingsError, match=r"^ray://head:10001 asks$"),
        env.ray_cluster("ray://head:10001", "n", Lines()),
    ):
        pass
    assert "init" not in found.calls


def with_token(address):
    """A channel as Ray makes it where it has a token."""

    class Adds(grpc.UnaryUnaryClientInterceptor):
        def intercept_unary_unary(self, continuation, details, request):
            more = [*details.metadata, ("authorization", "Bearer right")]
            return continuation(details._replace(metadata=more), request)

    return grpc.intercept_channel(grpc.insecure_channel(address), Adds())


def test_a_long_start_says_for_what_it_waits(ray, capsys, monkeypatch):
    monkeypatch.setattr("condu_ray.orchestration.watch.lines.FIRST_SECONDS", 0.05)
    monkeypatch.setattr("condu_ray.orchestration.watch.lines.WAIT_SECONDS", 0.05)
    ray(seconds=0.5)
    with env.ray_cluster("local", "n", Lines()):
        pass
    assert "waiting: Ray starts (0 s)" in capsys.readouterr().out
