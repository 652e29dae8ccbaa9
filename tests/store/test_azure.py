"""Azure Blob Storage, as Azurite speaks it: what is its own beside what `test_backend.py` asks of every backend."""

import base64
import os

import pytest

from condu_ray.store import bucket as module
from condu_ray.store.artifacts import ArtifactError, check_writable
from condu_ray.store.backend import OBJECTS
from condu_ray.store.bucket import CONNECTED, bucket_of
from condu_ray.store.location import Location
from tests.store.test_bucket import check_not_mixed


def test_it_is_found_whatever_address_s3_has(azurite, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://s3.example")
    check_writable(azurite)


def test_a_listing_gives_the_tags_that_conditions_are_asked_with(azurite):
    OBJECTS.create(azurite / "a", b"one")
    bucket, key = bucket_of(azurite), (azurite / "a").key
    listed = bucket.folder(azurite.key)[0]["a"]
    assert listed == bucket.below(azurite.key)[key] == bucket.tag(key)
    assert bucket.swap(key, b"two", listed)
    assert not bucket.swap(key, b"three", listed)
    assert OBJECTS.read(azurite / "a") == b"two"


def test_large_files_go_in_blocks_and_come_back_by_their_ranges(azurite, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "PART_BYTES", 2**20)
    content = os.urandom(5 * 2**20 + 7)
    OBJECTS.publish(azurite / "key", lambda folder: (folder / "data").write_bytes(content), "data")
    monkeypatch.setenv("CONDU_RAY_CACHE", str(tmp_path / "another machine"))
    assert OBJECTS.local(azurite / "key" / "data").read_bytes() == content


def test_what_is_replaced_while_it_is_read_is_not_mixed(azurite, monkeypatch):
    check_not_mixed(azurite, monkeypatch)


def test_a_container_that_is_not_there_and_a_wrong_key_are_named(azurite, monkeypatch):
    with pytest.raises(ArtifactError, match="no such bucket; make it first"):
        check_writable(Location("az://nowhere/storage"))
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", base64.b64encode(b"hush").decode())
    CONNECTED.pop("az://condu", None)
    with pytest.raises(ArtifactError, match="AZURE_STORAGE_ACCOUNT_KEY") as caught:
        check_writable(azurite / "other")
    assert base64.b64encode(b"hush").decode() not in str(caught.value)
    CONNECTED.pop("az://nowhere", None)
