"""What is kept of all tasks: no order, no way from one task to another, files that say what they are."""

import itertools
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from condu_ray.merging import DeltaError, DuplicateTaskError, UnknownTaskError, reconstruction
from condu_ray.merging.codes import code_file, reference, shared_sign
from condu_ray.merging.codes.code_file import CodeFileError
from condu_ray.merging.codes.values import LowRankDeltas, SignedDeltas
from tests.merging.deltas import DTYPES, grid_deltas, named, small_delta

VALUES = (LowRankDeltas, SignedDeltas)
TASKS = ("aircraft", "caltech", "dtd", "eurosat")


def delta_of(task, dtype=torch.float32):
    delta = small_delta(TASKS.index(task), dtype)
    delta["tokens"] = torch.zeros(9, 4, dtype=dtype)
    delta["tokens"][TASKS.index(task) : TASKS.index(task) + 3] = small_delta(7, dtype)["block.weight"][:3, :4]
    return delta


OPTIONS = {LowRankDeltas: {"bits": 5.0}, SignedDeltas: {}}
"""A budget that buys most of a delta so small."""


def kept(value, tasks=TASKS):
    found = value.empty()
    for task in tasks:
        found = found.unify(task, delta_of(task), **OPTIONS[value])
    return found


def files(value, folder):
    folder.mkdir()
    value.save(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("value", VALUES)
class TestBoth:
    def test_every_order_of_the_same_tasks_gives_the_same_bits(self, value, tmp_path):
        first = kept(value)
        wanted = files(first, tmp_path / "first")
        for number, order in enumerate(list(itertools.permutations(TASKS))[1::8]):
            other = kept(value, order)
            assert other.tasks == order
            assert other.equal(first)
            assert files(other, tmp_path / str(number)) == wanted
            for task in TASKS:
                one, same = first.decouple(task), other.decouple(task)
                assert all(torch.equal(one[name], same[name]) for name in one)

    def test_a_task_more_touches_no_byte_of_the_earlier_tasks_files(self, value, tmp_path):
        before, after = (files(kept(value, TASKS[:n]), tmp_path / str(n)) for n in (3, 4))
        assert {f"task-{task}.safetensors" for task in TASKS} <= after.keys()
        assert all(before[f"task-{task}.safetensors"] == after[f"task-{task}.safetensors"] for task in TASKS[:3])

    def test_it_comes_back_bit_for_bit(self, value, tmp_path):
        found = kept(value)
        files(found, tmp_path / "v")
        loaded = value.load(tmp_path / "v")
        assert loaded.equal(found)
        assert sorted(loaded.tasks) == sorted(found.tasks)
        one, other = (each.unify("food", delta_of("dtd"), **OPTIONS[value]) for each in (loaded, found))
        assert one.equal(other)
        assert not loaded.equal(kept(value, TASKS[:3]))

    def test_unifying_leaves_the_value_before_as_it_was(self, value):
        before = kept(value, TASKS[:2])
        fingerprint = before.fingerprint
        delta = delta_of("dtd")
        before.unify("dtd", delta, **OPTIONS[value])
        assert before.fingerprint == fingerprint
        assert all(torch.equal(tensor, delta_of("dtd")[name]) for name, tensor in delta.items())

    def test_keeping_what_was_brought_back_keeps_it(self, value):
        """A code of a decoded delta decodes to that delta: nothing is lost twice."""
        once = value.empty().unify("a", delta_of("dtd"), **OPTIONS[value]).decouple("a")
        twice = value.empty().unify("a", once, **OPTIONS[value]).decouple("a")
        assert reconstruction(once, twice).relative_l2 < (0.02 if value is SignedDeltas else 0.15)
        assert reconstruction(once, twice).sign_agreement > 0.97

    def test_what_was_zero_is_zero(self, value):
        found = kept(value)
        for task in TASKS:
            assert not found.decouple(task)["tokens"][delta_of(task)["tokens"].eq(0).all(dim=1)].any()

    def test_bad_input_is_refused(self, value):
        found = kept(value, TASKS[:2])
        with pytest.raises(DuplicateTaskError, match="'aircraft' was unified before"):
            found.unify("aircraft", delta_of("dtd"))
        with pytest.raises(UnknownTaskError, match="known tasks: aircraft, caltech"):
            found.decouple("dtd")
        with pytest.raises(ValueError, match="needs a name"):
            found.unify("", delta_of("dtd"))
        with pytest.raises(DeltaError, match=r"task 'dtd': tensor 'block.bias' is missing"):
            found.unify("dtd", {name: tensor for name, tensor in delta_of("dtd").items() if name != "block.bias"})
        with pytest.raises(DeltaError, match=r"task 'dtd': tensor 'scale' is torch.float64 \(\)"):
            found.unify("dtd", delta_of("dtd") | {"scale": torch.tensor(1.0, dtype=torch.float64)})

    def test_a_value_that_float16_has_not_is_refused(self, value):
        """Factors are rounded to bfloat16's numbers, 65504 to 65536, and infinity would be merged into a model."""
        signs = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).sign()
        about = {LowRankDeltas: {"bits": 1.26}, SignedDeltas: {}}[value]  # of signs alone
        state = value.empty().unify("a", {"w": (65504 * signs).half()}, **about)
        with pytest.raises(DeltaError, match=r"tensor 'w' holds -?inf"):
            state.decouple("a")

    def test_a_file_of_another_version_is_named(self, value, tmp_path, monkeypatch):
        files(kept(value), tmp_path / "v")
        monkeypatch.setitem(code_file.VERSIONS, value.KIND, 2)  # as in a later release, whose tensors mean other things
        with pytest.raises(CodeFileError, match=r"\.safetensors: is \w+ of version 1, and \w+ 2 is read there"):
            value.load(tmp_path / "v")

    def test_a_damaged_file_is_named(self, value, tmp_path):
        files(kept(value), tmp_path / "v")
        path = tmp_path / "v" / "task-dtd.safetensors"
        content = path.read_bytes()
        for damaged in (content[:-1], content[:-1] + bytes([content[-1] ^ 1]), b"", b"x" * 99):
            path.write_bytes(damaged)
            with pytest.raises(CodeFileError, match=r"task-dtd\.safetensors"):
                value.load(tmp_path / "v")
        path.write_bytes(content)
        with safe_open(path, "pt") as file:
            tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
        for other, words in (
            (None, "metadata cannot be read"),
            (metadata | {"x": "1"}, "keys that it should not have"),
        ):
            save_file(tensors, path, metadata=other)
            with pytest.raises(CodeFileError, match=rf"task-dtd\.safetensors: .*{words}"):
                value.load(tmp_path / "v")
        shutil.copy(tmp_path / "v" / "task-dtd.safetensors", path.with_name("task-x.safetensors"))
        other = files(kept(*(one for one in VALUES if one is not value)), tmp_path / "other")
        path.write_bytes(other["task-dtd.safetensors"])
        with pytest.raises(CodeFileError, match=r"task-dtd\.safetensors: is \w+ of version 1, and \w+ 1 is read there"):
            value.load(tmp_path / "v")


def test_a_magnitude_that_is_gone_is_missed(tmp_path):
    files(kept(SignedDeltas), tmp_path / "v")
    (tmp_path / "v" / "magnitude.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no shared_magnitude at"):
        SignedDeltas.load(tmp_path / "v")


def test_to_forget_a_task_of_condu_svd_is_to_delete_its_file(tmp_path):
    files(kept(LowRankDeltas), tmp_path / "v")
    (tmp_path / "v" / "task-dtd.safetensors").unlink()
    assert LowRankDeltas.load(tmp_path / "v").equal(kept(LowRankDeltas, [task for task in TASKS if task != "dtd"]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_signs_and_row_norms_are_kept_for_ever(dtype):
    found = SignedDeltas.empty()
    for task in TASKS:
        found = found.unify(task, delta_of(task, dtype))
        for earlier in found.tasks:
            for name, tensor in found.decouple(earlier).items():
                own = delta_of(earlier, dtype)[name]
                assert torch.equal(tensor.sign(), own.sign())
                if own.ndim > 1:
                    norms = own.double().abs().sum(dim=1)
                    assert torch.allclose(
                        tensor.double().abs().sum(dim=1), norms, rtol=2e-2 if dtype == torch.bfloat16 else 5e-3
                    )


def test_a_value_far_below_its_tensors_mean_keeps_its_sign():
    """Beside values of a million times its size it is less than half a step of the grid."""
    delta = {"w": torch.tensor([[1.0, -1e-6], [-1e-6, 1.0]])}
    found = SignedDeltas.empty().unify("aircraft", delta)
    assert found.magnitude["w"].tolist() == [[2 * shared_sign.GRID, 1], [1, 2 * shared_sign.GRID]]
    assert torch.equal(found.decouple("aircraft")["w"].sign(), delta["w"].sign())


def test_it_is_what_the_literal_twin_says():
    wanted, found = reference.signed({task: delta_of(task) for task in TASKS}), kept(SignedDeltas)
    for task in TASKS:
        served = found.decouple(task)
        assert all(torch.allclose(served[name].double(), wanted[task][name], rtol=1e-5) for name in served)


@pytest.mark.parametrize(
    "shapes", [{"w": (12, 9), "v": (40,), "one": (), "row": (1, 7)}, {"w": (3, 2, 4), "z": (4, 4)}]
)
def test_zeros_between_other_values_stay_zero_and_take_no_part_in_the_norms(shapes):
    deltas = named(grid_deltas(3, seed=2, shapes=shapes))
    for task, delta in deltas.items():
        delta["w"].view(-1)[int(task[-1]) :: 5] = 0
        delta["w"][2] = 0
    wanted, found = reference.signed(deltas), SignedDeltas.empty()
    for task, delta in deltas.items():
        found = found.unify(task, delta)
    for task, delta in deltas.items():
        for name, tensor in found.decouple(task).items():
            assert torch.equal(tensor.sign(), delta[name].sign()), name
            assert torch.allclose(tensor.double(), wanted[task][name], rtol=5e-3), name


def test_codes_that_do_not_fit_are_refused():
    state = kept(SignedDeltas, TASKS[:2])
    code = state.codes["caltech"]
    less = {name: tensor for name, tensor in state.magnitude.items() if name != "scale"}
    for other in (less, state.magnitude | {"scale": torch.ones(2, dtype=torch.int32)}):
        with pytest.raises(ValueError, match="tensor 'scale' is not in the shared magnitude"):
            shared_sign.decode(other, code)
    for change, message in (
        ({"norms": torch.cat([code["norms"], code["norms"][:1]])}, "norms that belong to no tensor"),
        ({"stream": torch.cat([code["stream"], code["stream"][:1]])}, "longer than what it holds"),
        ({"stream": code["stream"][:-1]}, "ends too early"),
        ({"layout": code["layout"][3:]}, "layout cannot be read"),
    ):
        with pytest.raises(ValueError, match=message):
            shared_sign.decode(state.magnitude, {**code, **change})


def test_a_task_alone_is_served_as_it_is():
    delta = delta_of("dtd")
    assert reconstruction(delta, SignedDeltas.empty().unify("dtd", delta).decouple("dtd")).relative_l2 < 3e-3


def test_a_magnitude_that_overflows_is_refused():
    delta = {"w": torch.ones(2, 2)}
    full = {"w": torch.full((2, 2), 2**31 - 1, dtype=torch.int32)}
    with pytest.raises(DeltaError, match="task 'x': tensor 'w': the shared magnitude overflows"):
        shared_sign.add_magnitude(full, delta, task="x")


def test_rows_whose_sizes_sum_beyond_what_is_kept_are_refused():
    delta = {"v": torch.ones(2, 2), "w": torch.tensor([[1.0, 2.0], [3e38, -3e38]])}
    with pytest.raises(DeltaError, match="task 'x': tensor 'w': the sum of a row's sizes overflows"):
        shared_sign.encode(delta, task="x")
