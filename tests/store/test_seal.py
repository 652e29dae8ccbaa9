"""What a newer release wrote is refused as such, and never called damaged: it would be removed."""

import json

import pytest

from condu_ray.store import seal
from condu_ray.store.artifacts import ArtifactError, publish, read_meta, read_sealed, write_sealed
from condu_ray.store.seal import FORMAT, NewerError, SealError, opened, sealed


@pytest.fixture
def newer(monkeypatch):
    """What is sealed meanwhile is of a newer release."""

    def until(write):
        monkeypatch.setattr(seal, "FORMAT", FORMAT + 1)
        write()
        monkeypatch.setattr(seal, "FORMAT", FORMAT)

    return until


@pytest.mark.parametrize("what", ["a file", "an artifact"])
def test_what_a_newer_release_wrote_stays(tmp_path, newer, what):
    path = tmp_path / "one"
    if what == "a file":
        newer(lambda: write_sealed(path, {"a": 1}))
        with pytest.raises(ArtifactError) as caught:
            read_sealed(path)
    else:
        newer(lambda: publish(path, {"a": 1}, lambda beside: (beside / "x").write_text("x"), seal=True))
        with pytest.raises(ArtifactError) as caught:
            read_meta(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.endswith(f"newer condu_ray (format {FORMAT + 1}, this one reads {FORMAT}): update condu_ray")
    assert "remove" not in message
    assert "damaged" not in message


def test_what_is_damaged_is_to_be_removed(tmp_path):
    write_sealed(tmp_path / "file", {"a": 1})
    (tmp_path / "file").write_text((tmp_path / "file").read_text().replace("1", "2", 1))
    with pytest.raises(ArtifactError, match="remove it to have it made again"):
        read_sealed(tmp_path / "file")
    publish(tmp_path / "key", {"a": 1}, lambda beside: (beside / "x").write_text("x"), seal=True)
    found = json.loads((tmp_path / "key" / "meta.json").read_text())
    (tmp_path / "key" / "meta.json").write_text(json.dumps(found | {"a": 2}))
    with pytest.raises(ArtifactError, match=r"damaged manifest .*; remove .*key to have it made again"):
        read_meta(tmp_path / "key")


def test_a_newer_one_is_one_that_cannot_be_opened():
    assert issubclass(NewerError, SealError)
    with pytest.raises(NewerError):
        opened(sealed({"a": 1}, "x") | {"format": FORMAT + 1}, "x")
