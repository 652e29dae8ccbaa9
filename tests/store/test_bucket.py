"""A bucket's calls over HTTP that goes wrong: whatever is lost or refused, what came of a call is known."""

import os
import shutil
from datetime import timedelta

import pytest
import torch

from condu_ray.store import bucket as module
from condu_ray.store.artifacts import ArtifactError, check_writable, load_tensors, publish, save_tensors
from condu_ray.store.backend import OBJECTS
from condu_ray.store.bucket import CONNECTED, BucketError, bucket_of
from condu_ray.store.bucket_probe import _good
from condu_ray.store.location import Location
from condu_ray.store.objects import Objects
from jobs.faults.object_server import ObjectServer


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT", timedelta(milliseconds=1))
    with ObjectServer() as made:
        use(made, monkeypatch)
        yield made
    forget()


def use(server, monkeypatch):
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)


def forget():
    for scheme in ("s3", "gs"):
        CONNECTED.pop(f"{scheme}://faulty", None)


@pytest.fixture(params=["s3", "gs"])
def place(request, server):
    return Location(f"{request.param}://faulty/storage")


class Once:
    """Has the `number`-th request of a kind go wrong."""

    def __init__(self, words, verb=None, number=1):
        self.words, self.verb, self.left = words, verb, number

    def __call__(self, asked):
        self.left -= self.verb in (None, asked.verb)
        return self.words if self.left == 0 and self.verb in (None, asked.verb) else None


FAULTS = ("lost before", "lost after", "500", "503", "429")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_write_that_goes_wrong_once_is_made_once(place, server, fault):
    store = OBJECTS

    def faulty(call):
        server.rule = Once(fault, "PUT")
        found = call()
        assert server.rule.left <= 0  # it went wrong
        return found

    assert faulty(lambda: store.replace(place / "a", b"one"))
    assert faulty(lambda: store.create(place / "b", b"one"))
    assert not store.create(place / "b", b"two")
    assert not faulty(lambda: store.create(place / "b", b"three"))
    stamp = store.stamp(place / "b")
    assert faulty(lambda: store.replace(place / "b", b"four", unchanged=stamp))
    assert not faulty(lambda: store.replace(place / "b", b"five", unchanged=stamp))
    assert (store.read(place / "a"), store.read(place / "b")) == (b"one", b"four")
    for number in range(3):
        faulty(lambda number=number: store.append(place / "log", b"%d\n" % number))
    assert store.lines(place / "log") == [b"0\n", b"1\n", b"2\n"]
    before = store.stamp(place / "b")
    for _ in range(2):  # the second by what the first has written
        assert faulty(lambda: store.touch(place / "b", b"four"))
    assert store.stamp(place / "b") != before
    assert store.read(place / "b") == b"four"


TENSORS = {"w": torch.arange(6.0).reshape(2, 3)}


def published(folder):
    publish(folder, {"task": "a"}, lambda draft: save_tensors(draft / "x.safetensors", TENSORS), seal=True)
    return load_tensors(folder, "x.safetensors")["w"]


@pytest.mark.parametrize("place", ["s3"], indirect=True)
def test_whichever_request_goes_wrong_an_artifact_is_the_same(place, server, own_cache):
    published(place / "whole")
    count = len(server.asked)
    expected = {key.rpartition("/")[2]: one.content for key, one in server.objects.items() if "whole." in key}
    assert count > 8
    for number in range(1, count + 1):
        shutil.rmtree(own_cache)
        server.objects.clear()
        OBJECTS.__init__()
        server.rule = Once((*FAULTS, "slow")[number % 6], number=number)
        assert torch.equal(published(place / "whole"), TENSORS["w"])
        found = {key.rpartition("/")[2]: one.content for key, one in server.objects.items() if "whole." in key}
        assert found == expected
        assert len(server.objects) == 3  # of the artifact's two files and the object that names them nothing is twice


def test_a_store_that_ignores_conditions_is_refused(place, server):
    check_writable(place)
    forget()
    _good.clear()
    server.honours = False
    with pytest.raises(ArtifactError, match=r"--storage .*faulty/storage/other: .*ignores If-None-Match: .*SeaweedFS"):
        check_writable(place / "other")
    assert not [key for key in server.objects if "other" in key]


@pytest.mark.parametrize("place", ["s3"], indirect=True)
def test_credentials_that_are_refused_are_named_by_their_variables_and_not_shown(place, server, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    server.rule = lambda asked: "403"
    with pytest.raises(ArtifactError, match="AWS_ACCESS_KEY_ID") as caught:
        check_writable(place)
    assert "hush" not in str(caught.value)


def test_an_account_that_nobody_named_is_asked_for(monkeypatch):
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    CONNECTED.pop("az://condu", None)
    with pytest.raises(ArtifactError, match=r"az://condu/x: .*set AZURE_STORAGE_ACCOUNT_NAME"):
        check_writable(Location("az://condu/x"))


@pytest.mark.parametrize("place", ["s3"], indirect=True)
def test_large_files_go_in_parts_and_come_back_by_their_ranges(place, server, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "PART_BYTES", 6 * 2**20)  # S3 takes no parts under 5 MiB
    content = os.urandom(20 * 2**20)
    OBJECTS.publish(place / "key", lambda folder: (folder / "data").write_bytes(content), "data")
    assert sum(one.verb == "PART" for one in server.asked) > 4
    monkeypatch.setenv("CONDU_RAY_CACHE", str(tmp_path / "another machine"))
    server.rule = Once("lost after", "GET", number=3)
    assert OBJECTS.local(place / "key" / "data").read_bytes() == content
    assert sum(one.verb == "GET" and "data" in one.key for one in server.asked) >= 4


def check_not_mixed(place, monkeypatch):
    """What is replaced while it is read by parts is not mixed."""
    monkeypatch.setattr(module, "PART_BYTES", 1000)
    monkeypatch.setattr(module, "AT_ONCE", 1)
    OBJECTS.replace(place / "data", b"a" * 5000)
    parts = bucket_of(place).parts((place / "data").key, OBJECTS.stamp(place / "data"))
    assert next(parts) == b"a" * 1000
    OBJECTS.replace(place / "data", b"b" * 5000)
    with pytest.raises(BucketError, match="replaced while"):
        list(parts)


@pytest.mark.parametrize("place", ["s3"], indirect=True)
def test_what_is_replaced_while_it_is_read_is_not_mixed(place, server, monkeypatch):
    check_not_mixed(place, monkeypatch)


@pytest.mark.parametrize("place", ["s3"], indirect=True)
def test_two_that_append_to_one_log_are_found_out(place, server):
    first, second = Objects(), Objects()
    first.append(place / "log", b"one\n")
    assert second.lines(place / "log") == [b"one\n"]
    first.append(place / "log", b"two\n")
    with pytest.raises(OSError, match="took this run over"):
        second.append(place / "log", b"three\n")
    assert second.lines(place / "log") == [b"one\n", b"two\n"]
