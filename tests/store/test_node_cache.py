"""This machine's copies of what is in buckets: by content, once, bounded, and never half."""

import errno
import hashlib
import os
import threading
import time

import pytest

from condu_ray.store import node_cache as module
from condu_ray.store.node_cache import NodeCache, node_cache


def sha(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def cache(tmp_path):
    return NodeCache(tmp_path / "cache", 1000)


def take(cache, name, content, expected=None):
    return cache.content(name, expected, len(content), lambda: [content])


def test_a_content_is_read_once_whatever_it_is_called(cache):
    assert take(cache, "a", b"x") == sha(b"x")
    never = pytest.fail
    assert cache.content("a", None, 1, lambda: never("read again")) == sha(b"x")
    assert cache.content("b", sha(b"x"), 1, lambda: never("read again")) == sha(b"x")
    folder = cache.view("v", {"one": sha(b"x"), "two": sha(b"x")})
    assert [path.read_bytes() for path in sorted(folder.iterdir())] == [b"x"] * 2
    assert cache.view("v", {"one": take(cache, "c", b"y")}) == folder
    assert (folder / "one").read_bytes() == b"y"


def test_what_is_not_what_was_said_is_kept_as_what_it_is(cache):
    assert take(cache, "a", b"damaged", expected=sha(b"whole")) == sha(b"damaged")
    assert cache.blob(sha(b"whole")) is None


def test_a_reading_that_fails_leaves_nothing(cache):
    def parts():
        yield b"half"
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        cache.content("a", None, 8, parts)
    assert [path for name in ("blobs", "known", "drafts") for path in (cache.root / name).iterdir()] == []


def test_a_full_disk_says_what_to_set(cache):
    def parts():
        yield b"x"
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="CONDU_RAY_CACHE") as caught:
        cache.content("a", None, 8, parts)
    assert caught.value.errno == errno.ENOSPC


def test_it_is_bounded_and_what_was_used_last_stays(cache):
    old = time.time() - 10 * module.RECENT_SECONDS
    for number in range(12):
        digest = take(cache, f"{number}", b"%03d" % number * 33)  # 99 bytes
        os.utime(cache.root / "blobs" / digest, (old + number,) * 2)
        cache.view(f"v{number}", {"data": digest})
    used = cache.blob(sha(b"002" * 33))
    assert used is not None
    take(cache, "more", b"m" * 400)
    left = {path.name for path in (cache.root / "blobs").iterdir()}
    assert sum(path.stat().st_size for path in (cache.root / "blobs").iterdir()) <= 1000
    assert {used.name, sha(b"m" * 400), sha(b"011" * 33)} <= left
    assert sha(b"003" * 33) not in left
    assert take(cache, "3", b"003" * 33) == sha(b"003" * 33)  # it is read again


def test_what_was_just_asked_for_stays_whatever_the_bound(tmp_path):
    cache = NodeCache(tmp_path, 10)
    kept = [take(cache, f"{number}", b"%d" % number * 20) for number in range(3)]
    assert all(cache.blob(one) for one in kept)


def test_of_many_that_want_one_content_one_reads_it(cache):
    count, lock = [0], threading.Lock()

    def parts():
        with lock:
            count[0] += 1
        time.sleep(0.05)
        yield b"x"

    threads = [threading.Thread(target=cache.content, args=("a", None, 1, parts)) for _ in range(5)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert count == [1]


def test_a_copy_that_is_forgotten_is_read_again_and_other_files_are_let_be(cache, tmp_path):
    path = cache.view("v", {"a": take(cache, "a", b"x")}) / "a"
    assert cache.forget(path)
    assert cache.blob(sha(b"x")) is None
    (tmp_path / "own").write_text("x")
    assert not cache.forget(tmp_path / "own")
    assert (tmp_path / "own").exists()


def test_the_environment_says_where_and_how_much(tmp_path, monkeypatch):
    monkeypatch.setenv("CONDU_RAY_CACHE", str(tmp_path / "here"))
    monkeypatch.setenv("CONDU_RAY_CACHE_GB", "0.5")
    assert (node_cache().root, node_cache().limit) == (tmp_path / "here", 5 * 10**8)
    monkeypatch.setenv("CONDU_RAY_CACHE_GB", "much")
    with pytest.raises(OSError, match="CONDU_RAY_CACHE_GB is 'much'; give gigabytes"):
        node_cache()
    monkeypatch.setenv("CONDU_RAY_CACHE_GB", "1")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CONDU_RAY_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match="set CONDU_RAY_CACHE to a folder"):
        node_cache()
