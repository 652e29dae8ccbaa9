import json
import threading

import pytest
import torch

from condu_ray.store.artifacts import (
    ArtifactError,
    WriteError,
    check_writable,
    exists,
    load_tensors,
    publish,
    read_meta,
    save_tensors,
    write_text,
)  # fmt: skip

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3, dtype=torch.bfloat16)}


def published(folder, **meta):
    return publish(folder, meta, lambda beside: save_tensors(beside / "x.safetensors", TENSORS))


def test_round_trip_with_manifest(tmp_path):
    manifest = published(tmp_path / "key", task="a")
    assert manifest["task"] == "a"
    assert {"torch", "git", "condu_ray", "ray"} <= set(manifest["versions"])
    loaded = load_tensors(tmp_path / "key", "x.safetensors")
    assert all(
        torch.equal(loaded[name], TENSORS[name]) and loaded[name].dtype == TENSORS[name].dtype for name in TENSORS
    )
    assert exists(tmp_path / "key")
    assert not exists(tmp_path / "other")


def test_a_file_that_cannot_be_written_is_named_as_it_is_called_once_whole(tmp_path):
    def write(beside):
        (beside / "x.safetensors").mkdir()
        save_tensors(beside / "x.safetensors", TENSORS)

    with pytest.raises(WriteError) as caught:
        publish(tmp_path / "key", {}, write)
    assert str(caught.value).startswith(f"{tmp_path}/key/x.safetensors: cannot be written")


def test_a_failed_writer_leaves_nothing(tmp_path):
    def write(beside):
        (beside / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        publish(tmp_path / "key", {}, write)
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_writers_wins_and_nothing_is_left_over(tmp_path):
    barrier, manifests = threading.Barrier(2), []

    def writer(number):
        def write(beside):
            barrier.wait()
            (beside / "n").write_text(str(number))

        manifests.append(publish(tmp_path / "key", {"number": number}, write))

    threads = [threading.Thread(target=writer, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert manifests[0] == manifests[1] == read_meta(tmp_path / "key")
    assert (tmp_path / "key" / "n").read_text() == str(manifests[0]["number"])
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "x.safetensors").write_bytes((f / "x.safetensors").read_bytes()[:-1]), "checksum"),
        (lambda f: (f / "x.safetensors").unlink(), "missing"),
        (lambda f: (f / "meta.json").write_text("{"), "damaged manifest"),
        (lambda f: (f / "meta.json").write_text("[]"), "damaged manifest"),
        (lambda f: (f / "meta.json").unlink(), "no artifact here"),
    ],
)
def test_damage_is_found_and_named(tmp_path, damage, words):
    folder = tmp_path / "key"
    published(folder)
    damage(folder)
    with pytest.raises(ArtifactError, match=words) as caught:
        load_tensors(folder, "x.safetensors")
    assert str(folder) in str(caught.value)


def test_one_flipped_bit_is_found(tmp_path):
    folder = tmp_path / "key"
    published(folder)
    data = bytearray((folder / "x.safetensors").read_bytes())
    data[-3] ^= 1
    (folder / "x.safetensors").write_bytes(data)
    with pytest.raises(ArtifactError, match="checksum"):
        load_tensors(folder, "x.safetensors")


def test_right_checksum_of_no_safetensors(tmp_path):
    publish(tmp_path / "key", {}, lambda beside: (beside / "x.safetensors").write_text("no"))
    with pytest.raises(ArtifactError, match="not a safetensors file"):
        load_tensors(tmp_path / "key", "x.safetensors")


def test_text_is_replaced_whole(tmp_path):
    write_text(tmp_path / "deep" / "a.json", json.dumps([1]))
    write_text(tmp_path / "deep" / "a.json", json.dumps([2]))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "deep" / "a.json").read_text()) == [2]


def test_storage_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="--storage"):
        check_writable(tmp_path / "file" / "below")
