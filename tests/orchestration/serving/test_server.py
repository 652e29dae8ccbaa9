"""What is refused before anything starts, and what is said of replicas that fail; without Ray."""

import socket
import sys
from types import SimpleNamespace

import pytest
from ray import serve
from ray.serve import context

from condu_ray.orchestration.cluster.room import ResourceError
from condu_ray.orchestration.serving import server as module
from condu_ray.orchestration.serving.app import NAME, build, configuration
from condu_ray.orchestration.serving.server import (
    ServeError,
    Server,
    check_room,
    elsewhere,
    follow,
    free_port,
    serving,
    why,
)
from condu_ray.use.serving import ServeArguments, Source


def test_an_environment_without_ray_serve_is_refused_before_anything_starts(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.serve", None)  # an import of it fails
    monkeypatch.setattr(module.env, "ray_cluster", lambda *_: pytest.fail("a cluster was started"))
    with (
        pytest.raises(ResourceError, match=r"is missing\): pip install 'condu_ray\[serve\]'"),
        serving(ServeArguments(run="r"), "127.0.0.1", 0),
    ):
        pass


def test_a_port_that_is_taken_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=rf"127\.0\.0\.1:{port}: cannot listen there.*--port"):
            free_port("127.0.0.1", port)
    assert free_port("127.0.0.1", port) == port
    assert free_port("127.0.0.1", 0) > 0
    with pytest.raises(ResourceError, match="give --host or --port"):
        free_port("192.0.2.77", 8000)  # an address of documents, of no machine


def test_replicas_that_would_wait_for_ever_are_refused():
    arguments = ServeArguments(run="r", min_replicas=2, max_replicas=2, cpus_per_replica=0.5, fronts=2)
    check_room(arguments, {"CPU": 2.2}, 0.1)
    with pytest.raises(ResourceError, match=r"4 replicas and 2 fronts ask for 2.2 CPUs, and the cluster has 2"):
        check_room(arguments, {"CPU": 2.0}, 0.1)
    on_gpus = arguments.model_copy(update={"gpus_per_replica": 0.5})
    check_room(on_gpus, {"CPU": 8.0, "GPU": 2.0}, 0.1)
    with pytest.raises(ResourceError, match=r"ask for 2 GPUs, and the cluster has 0.*--gpus_per_replica"):
        check_room(on_gpus, {"CPU": 8.0}, 0.1)
    large = arguments.model_copy(update={"gpus_per_replica": 0.6})
    check_room(large, {"CPU": 8.0, "GPU": 4.0}, 0.1)
    with pytest.raises(ResourceError, match=r"3 GPUs hold 3 replicas of 0.6 each.*are to be 4; lower --min_replicas"):
        check_room(large, {"CPU": 8.0, "GPU": 3.0}, 0.1)
    apart = arguments.model_copy(update={"cpus_per_replica": 1.5})
    check_room(apart, {"CPU": 8.0}, 0.1, [{"CPU": 4.0}, {"CPU": 4.0}])
    with pytest.raises(ResourceError, match=r"nodes hold 0 replicas of 1.5 CPUs .* are to be 4; lower --min_replicas"):
        check_room(apart, {"CPU": 8.0}, 0.1, [{"CPU": 1.0}] * 8)


def test_the_reason_of_a_failure_is_its_last_error():
    text = """The deployment failed to start 2 times in a row.
    Traceback (most recent call last):
      File "a.py", line 3, in work
    condu_ray.use.served.UseError: r: has no method 'x'
    """
    assert why(text) == "condu_ray.use.served.UseError: r: has no method 'x'"
    assert why("it is gone") == "it is gone"
    assert why("") == "no reason is given"


def test_an_address_is_one_that_a_browser_opens():
    arguments = ServeArguments(run="r")
    assert Server(arguments, "127.0.0.1", 8000).address == "http://127.0.0.1:8000"
    assert Server(arguments, "0.0.0.0", 8000).address == "http://127.0.0.1:8000"
    assert Server(arguments, "::1", 8000).address == "http://[::1]:8000"


def test_a_head_on_another_machine_is_named():
    head = {"NodeManagerAddress": "192.0.2.1", "Resources": {"node:__internal_head__": 1.0}}
    other = {"NodeManagerAddress": "192.0.2.2", "Resources": {"CPU": 1.0}}
    assert elsewhere([other, head], "192.0.2.2") == "192.0.2.1"
    assert elsewhere([other, head], "192.0.2.1") is None


def test_ray_serve_that_is_there_and_listens_elsewhere_is_refused(monkeypatch):
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications={}, proxies={"head": "HEALTHY"}))
    listens = SimpleNamespace(http_config=SimpleNamespace(host="0.0.0.0", port=8000))
    monkeypatch.setattr(context, "_get_global_client", lambda: listens)
    with pytest.raises(ResourceError, match=r"listens at 0\.0\.0\.0:8000, not at 127\.0\.0\.1:8000; end it"):
        module._others("127.0.0.1", 8000)  # it would be open to all
    with pytest.raises(ResourceError, match=r"not at 0\.0\.0\.0:9000"):
        module._others("0.0.0.0", 9000)
    assert module._others("0.0.0.0", 8000)


def test_a_new_source_changes_the_user_config_alone():
    arguments = ServeArguments(run="r", session=1)
    one, two = (configuration(arguments, Source(run="r", session=number), {}) for number in (1, 2))
    assert one["name"] == NAME
    assert {key for key in one if one[key] != two[key]} == {"deployments"}
    assert [deployment["user_config"]["session"] for deployment in two["deployments"]] == [2, 2, 2]


def test_settings_reach_the_deployments():
    given = {"run": "r", "max_ongoing_requests": 7, "max_queued_requests": 5, "min_replicas": 1, "max_replicas": 3,
             "target_ongoing_requests": 4, "cpus_per_replica": 0.3, "gpus_per_replica": 0.5, "fronts": 2}  # fmt: skip
    front = build(given)._bound_deployment
    router, experts = (bound._bound_deployment for bound in front.init_args[1:])
    for one in (router, experts):
        assert (one.max_ongoing_requests, one.max_queued_requests) == (7, 5)
        scaling = one._deployment_config.autoscaling_config
        assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 3, 4)
        assert (one.ray_actor_options["num_cpus"], one.ray_actor_options["num_gpus"]) == (0.3, 0.5)
    assert front.num_replicas == 2
    assert front.max_ongoing_requests > 12  # it refuses itself, in a sentence, what these have no room for


class Watched:
    """A server whose failures are given in turn; the last for ever."""

    def __init__(self, *failures):
        self.failures, self.now, self.deployed = list(failures), Source(run="r", session=1), []

    def failure(self):
        return self.failures.pop(0) if len(self.failures) > 1 else self.failures[0]

    def deploy(self, now):
        self.now = now
        self.deployed.append(now)


@pytest.fixture
def clock(monkeypatch):
    """Time that passes by sleeping alone."""
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    return now


def test_a_replica_that_is_replaced_ends_nothing_and_one_that_never_comes_does(clock):
    watched = Watched(*["x"] * 50, None, "Error: no memory")
    with pytest.raises(ServeError, match="no memory"):
        follow(watched, 0, lambda: None, print)
    assert clock[0] == pytest.approx(module.START_SECONDS + 51 * module.POLL_SECONDS, abs=1)


def test_a_new_session_is_looked_for_and_served(clock):
    fitted = Source(run="r", session=2, calibration="c")
    found = [Source(run="r", session=1), OSError("out of reach"), Source(run="r", session=2), fitted]
    said = []

    def latest():
        one = found.pop(0) if len(found) > 1 else found[0]
        if isinstance(one, OSError):
            raise one
        return one

    def say(text):
        said.append((round(clock[0]), text))
        if len(said) == 3:
            raise KeyboardInterrupt

    watched = Watched(None)
    with pytest.raises(KeyboardInterrupt):
        follow(watched, 10, latest, say)
    assert watched.deployed == [Source(run="r", session=2), fitted]
    assert [at for at, _ in said] == pytest.approx([20, 30, 40], abs=1)
    assert "out of reach" in said[0][1]
    assert "session 2 of r is loaded to take the place" in said[1][1]
    assert "session 2 of r is loaded with the temperatures" in said[2][1]


def test_storage_that_is_away_is_said_once_and_again_when_it_goes_again(clock):
    there, away, said = Source(run="r", session=1), OSError("out of reach"), []
    found = [away, away, OSError("no rights"), away, there, away]

    def latest():
        if not found:
            raise KeyboardInterrupt
        one = found.pop(0)
        if isinstance(one, OSError):
            raise one
        return one

    with pytest.raises(KeyboardInterrupt):
        follow(Watched(None), 10, latest, said.append)
    assert [words.rpartition(": ")[2] for words in said] == [
        "out of reach",
        "no rights",
        "out of reach",
        "out of reach",
    ]
