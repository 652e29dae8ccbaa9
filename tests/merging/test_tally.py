"""Tallies: one delta more gives the bits that all deltas anew give, from memory and from a file."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from condu_ray.merging import DeltaError, UnifiedDelta, emr, ties
from condu_ray.merging.emr import EmrTally
from condu_ray.merging.spectral import IsoTally, TsvTally, iso_c, tsv_m
from condu_ray.merging.ties import TiesTally
from condu_ray.merging.trigger import pack
from condu_ray.merging.zeros import row_of, zeros_of
from tests.merging.deltas import DTYPES, grid_deltas, named, normal_deltas

RULES = {
    "ties": (lambda: TiesTally(density=0.4, scale=0.5), lambda deltas: ties(deltas, density=0.4, scale=0.5)),
    "emr": (EmrTally, emr),
    "emr, means": (lambda: EmrTally(rescaler="tensor_mean"), lambda deltas: emr(deltas, rescaler="tensor_mean")),
    "tsv-m": (lambda: TsvTally(scale=0.9), lambda deltas: tsv_m(deltas, scale=0.9)),
    "iso-c": (lambda: IsoTally(scale=0.9), lambda deltas: iso_c(deltas, scale=0.9)),
}
KINDS = (grid_deltas, normal_deltas, grid_deltas, normal_deltas, normal_deltas)


def assert_same_bits(found, wanted):
    if isinstance(wanted, UnifiedDelta):
        assert found.equal(wanted)
        return
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert found[name].dtype == wanted[name].dtype
        assert torch.equal(found[name], wanted[name]), name
        assert torch.equal(torch.signbit(found[name]), torch.signbit(wanted[name])), name


def stored(tally, make, tasks, before, folder):
    """The tally as another process reads it."""
    path = folder / f"{len(tasks)}.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tally.tensors().items()}, path)
    again = make()
    again.restore(load_file(path), tasks, before)
    return again


def name_of(one):
    """What a parameter is called, by every process alike."""
    return getattr(one, "__name__", str(one))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("dtype", "make_deltas"), zip((*DTYPES, torch.float32), KINDS, strict=True), ids=name_of)
def test_one_more_is_all_anew(rule, dtype, make_deltas, tmp_path):
    make, literal = RULES[rule]
    deltas = list(named(make_deltas(10, seed=5, dtype=dtype)).items())
    kept = make()
    model = kept.merge(dict(deltas[:1]))
    for count in range(2, 11):
        if count in (2, 9):  # each file is read and gone on from twice
            read, again = stored(kept, make, tuple(dict(deltas[: count - 1])), model, tmp_path), model
            path = tmp_path / f"{count - 1}.safetensors"
            content = path.read_bytes()
        model = kept.add(*deltas[count - 1], model)
        if count in (2, 3, 9, 10):
            again = read.add(*deltas[count - 1], again)
            wanted = literal(dict(deltas[:count]))
            assert_same_bits(model, wanted)
            assert_same_bits(again, wanted)
        assert path.read_bytes() == content  # what was read is not changed with the tally


def test_begun_in_the_middle_and_past_255():
    found = {str(index): {"w": torch.tensor([1.0, -2.0, 0.0]) * (index % 7 - 3)} for index in range(258)}
    first = dict(list(found.items())[:254])
    for make, literal in (RULES["ties"], RULES["emr"]):
        tally = make()
        model = tally.merge(first)
        for task in list(found)[254:]:
            model = tally.add(task, found[task], model)
        assert_same_bits(model, literal(found))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 70), st.floats(0, 1), st.integers(0, 100))
def test_zeros_come_back(numel, share, seed):
    nonzero = torch.rand(numel, generator=torch.Generator().manual_seed(seed)) >= share**4
    row = pack(nonzero)
    found = zeros_of(row, numel)
    assert torch.equal(row_of(found, numel), row)
    assert found.nbytes <= row.nbytes


def test_few_zeros_take_little():
    mask = torch.ones(100_001, dtype=torch.bool)
    mask[[0, 5, 12_501, 12_502, 100_000]] = False
    found = zeros_of(pack(mask), 100_001)
    assert found.tolist() == [0, 5, 12_501, 12_502, 100_000]
    assert torch.equal(row_of(found, 100_001), pack(mask))


@pytest.mark.parametrize("rule", RULES)
def test_bytes(rule):
    """ties 10 bytes a position, emr 8, iso-c 4: whatever the number of tasks, where no delta is 0."""
    make, _ = RULES[rule]
    tally = make()
    deltas = named(normal_deltas(6, shapes={"w": (64, 50)}))
    tally.merge(deltas)
    assert tally.expert_nbytes == 4 * 3200
    # tsv-m: of each of six deltas 50 // 6 singular vectors to the left and to the right, and values
    wanted = {"ties": 10, "iso-c": 4, "tsv-m": 4 * 6 * 8 * (64 + 50 + 1) / 3200}.get(rule, 8)
    assert tally.nbytes == wanted * 3200


@pytest.mark.parametrize("rule", RULES)
def test_what_is_refused(rule, tmp_path):
    make, _ = RULES[rule]
    (delta,), (other,) = grid_deltas(1), grid_deltas(1, seed=1)
    tally = make()
    model = tally.merge({"a": delta})
    tensors = tally.tensors()
    for wrong in ({}, dict(list(tensors.items())[:-1])):
        with pytest.raises(ValueError, match="do not fit together"):
            make().restore(wrong, ("a",), model)
    with pytest.raises(ValueError, match="'a' was merged before"):
        tally.add("a", other, model)
    for name, bad in (("one", other["one"].half()), ("matrix", other["matrix"][:3])):
        with pytest.raises(DeltaError, match=f"task 'b': tensor '{name}' has "):
            tally.add("b", {**other, name: bad}, model)
    tally = make()
    model = tally.merge({"a": delta})
    again = stored(tally, make, ("a",), model, tmp_path)
    with pytest.raises(DeltaError, match="task 'b': tensor 'one' has dtype"):
        again.add("b", {**other, "one": other["one"].half()}, model)
    with pytest.raises(DeltaError, match="task 'b'"):
        tally.add("b", {**other, "one": torch.tensor([float("nan")])}, model)
