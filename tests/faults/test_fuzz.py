"""Random input to every reader: the content that was written or a documented error, and nothing else.

A few thousand inputs here; `python jobs/faults/fuzz.py --inputs 1000000` feeds more of the same.
"""

from __future__ import annotations

import json
import random
import string

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from condu_ray.command_line import ConfigError, field_names, parse
from condu_ray.config import Experiment
from condu_ray.store.ledger import Entry, from_line, to_line
from condu_ray.store.seal import SealError, opened, sealed
from jobs.faults.fuzz import OUTCOMES, Hang, fuzz, mutate, outcome

INPUTS = 2600
NAMES = field_names()
ONCE = settings(
    max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
MANY = settings(max_examples=150, deadline=None, derandomize=True)

SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=8), VALUES, max_size=5)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return fuzz(tmp_path_factory.mktemp("fuzz"), INPUTS, seed=0)


def test_no_input_breaks_a_reader(result):
    table, faults = result
    assert faults == []
    assert sum(sum(row.values()) for row in table.values()) == INPUTS


def test_every_reader_was_fed_and_refuses_most(result):
    table, _ = result
    assert len(table) == 20
    for name, row in table.items():
        assert sum(row.values()) >= 10, name
        assert set(row) <= set(OUTCOMES)
        assert row["refused"] or row["accepted"], name


def test_the_same_seed_gives_the_same_inputs():
    def draw(seed):
        generator = random.Random(seed)
        return [mutate(b'{"a": 1}' * 9, generator, [b"other"]) for _ in range(50)]

    assert draw(3) == draw(3) != draw(4)


def _raise(error):
    raise error


def test_the_fuzzer_notices_what_it_looks_for():
    assert outcome(lambda: 1, 1, True) == ("equal", "")
    assert outcome(lambda: 2, 1, True) == ("broken", "other content")
    assert outcome(lambda: 2, 1, False) == ("accepted", "")
    assert outcome(lambda: [1], [1, 2], True) == ("shorter", "")
    assert outcome(lambda: [2], [1, 2], True) == ("broken", "other content")
    assert outcome(lambda: _raise(KeyError("a")), 1, True) == ("broken", "KeyError: 'a'")
    assert outcome(lambda: _raise(ConfigError("a")), 1, True) == ("refused", "")
    assert outcome(lambda: _raise(Hang()), 1, True)[0] == "broken"


def refused_or_valid(arguments):
    try:
        found = parse(arguments)
    except (ConfigError, SystemExit):
        return
    assert isinstance(found, Experiment)
    assert Experiment.model_validate_json(found.absolute().model_dump_json()).seed == found.seed


FLAGS = st.lists(
    st.tuples(st.sampled_from(NAMES) | st.text(string.ascii_lowercase + "._-", max_size=12), st.text(max_size=10)),
    max_size=3,
)


@ONCE
@given(FLAGS)
def test_any_flags_are_refused_by_name_or_make_a_configuration(pairs):
    refused_or_valid([f"--{name}={value}" for name, value in pairs])


@ONCE
@given(
    st.dictionaries(st.sampled_from([name.split(".")[0] for name in NAMES]) | st.text(max_size=8), VALUES, max_size=4)
)
def test_any_yaml_is_refused_by_name_or_makes_a_configuration(tmp_path, content):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    refused_or_valid(["--config", str(path)])


@ONCE
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_make_a_configuration(tmp_path, content):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    refused_or_valid(["--config", str(path)])


FINITE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
CONTENT = st.dictionaries(
    st.text(max_size=8).filter(lambda name: name not in ("format", "of", "seal")), FINITE, max_size=5
)


@MANY
@given(CONTENT, st.text(max_size=8))
def test_what_is_sealed_comes_back_through_json(content, of):
    assert opened(json.loads(json.dumps(sealed(content, of))), of) == content


@MANY
@given(CONTENT, st.text(max_size=8), st.text(max_size=8), FINITE)
def test_one_other_value_breaks_the_seal(content, of, key, value):
    good = json.loads(json.dumps(sealed(content, of)))
    bad = good | {key: value}
    if bad == good and all(type(bad[name]) is type(good[name]) for name in good):
        return
    try:
        assert opened(bad, of) == content
    except SealError:
        return


@MANY
@given(st.integers(0, 10**6), st.text(max_size=9), st.none() | st.text(max_size=9), st.floats(0, 1e9), st.randoms())
def test_a_ledger_line_comes_back_or_is_refused(position, task, expert, seconds, draw):
    entry = Entry(position, task, expert, "parent", "state", seconds)
    line = to_line(entry)
    assert from_line(line) == entry
    bad = mutate(line, draw, [b"x"])
    try:
        assert from_line(bad) == entry
    except ValueError:
        return
