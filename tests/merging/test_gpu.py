"""The kernels for GPUs: torch's bits by Triton's interpreter, code for real GPUs, and torch where Triton fails."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import condu_ray.merging.unify as module
from condu_ray.merging import UnifiedDelta, blocks
from tests.merging.deltas import DTYPES, normal_deltas

triton = pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtypes",
    [(torch.bfloat16, torch.float32), pytest.param((torch.float16, torch.float64), marks=pytest.mark.long)],
    ids=str,
)
def test_the_same_bits_as_by_torch_and_small_deltas_do_not_load_numba(dtypes):
    command = [sys.executable, "-m", "tests.merging.interpreted", *(str(dtype).partition(".")[2] for dtype in dtypes)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {str(dtype): [] for dtype in dtypes} | {"numba": False}


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_there_is_code_for_gpus(capability):
    """With no GPU here: down to machine code, by the assembler that comes with Triton."""
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from condu_ray.merging import gpu, gpu_jobs

    common, types = {"table": "*i64", "tensor_of": "*i32"}, {"stored": tl.bfloat16, "wide": tl.float32}
    counts, constant = {"counts": "*i64", "sums": "*fp64"}, dict.fromkeys(types, "constexpr")
    kernels = {
        gpu.unify_kernel: (
            {**common, **counts, "codes": "*fp32", "tasks": "i32", "groups": "i32", **constant},
            types,
            gpu_jobs._UNIFY[torch.float32],
        ),
        gpu.total_kernel: (
            {"table": "*i64", **counts, "totals": "*fp64", "columns": "i32", "step": "constexpr"},
            {"step": gpu_jobs._STEP},
            gpu_jobs._ON,
        ),
        gpu.decouple_kernel: ({**common, "scale": "*fp32", **constant}, types, gpu_jobs._DECOUPLE),
    }
    for kernel, (signature, constants, options) in kernels.items():
        ordered = {name: signature[name] for name in kernel.arg_names}
        made = triton.compile(
            ASTSource(kernel, signature=ordered, constexprs=constants),
            target=GPUTarget("cuda", capability, 32),
            options=options,
        )
        assert made.asm["cubin"], kernel


@pytest.fixture
def as_gpu(monkeypatch):
    """Has a CPU taken for a GPU, on which Triton can launch nothing."""
    from condu_ray.merging import gpu_jobs

    monkeypatch.setattr(module, "GPUS", {"cpu"})
    monkeypatch.setattr(module, "FUSED_FROM", 1)
    trusted = gpu_jobs.trusted
    trusted.cache_clear()
    yield gpu_jobs
    trusted.cache_clear()


def unified():
    state = UnifiedDelta.empty()
    for task, delta in zip("ab", normal_deltas(2, 0, torch.float32, {"w": (300, 9), "b": (7,)}), strict=True):
        state = state.unify(task, delta)
    return state, state.decouple("a")


def test_where_triton_fails_torch_does_it_and_that_is_said_once(as_gpu, caplog, monkeypatch):
    found, decoupled = unified()
    said = [record.getMessage() for record in caplog.records]
    assert [text.partition(" on ")[0] for text in said] == ["Triton's unify", "Triton's decouple"]
    assert all(text.endswith("; torch does it there") and "\n" not in text for text in said)
    monkeypatch.setattr(module, "GPUS", set())
    expected, expected_decoupled = unified()
    assert found.equal(expected)
    assert all(torch.equal(decoupled[name], one) for name, one in expected_decoupled.items())


def by_chunks(jobs, change):
    """What does the kernels' work by torch, and a little of it otherwise."""

    def unify(tensors, tables):
        totals = []
        for one in tensors:
            sums = torch.empty(blocks.block_count(len(one[0])), len(one[4]) + 1, dtype=torch.float64)
            jobs.unify_chunks(*one, tables.to(jobs.wide_dtype(one[0].dtype)), sums)
            totals.append(blocks.total_of_blocks(sums))
        totals = torch.stack(totals)
        if change == "u":
            tensors[0][2][100] = tensors[0][2][100].nextafter(torch.tensor(9.0))
        elif change == "masks":
            tensors[0][4][0, 100] ^= 1
        elif change == "sizes":
            totals[1, 2] = totals[1, 2].nextafter(torch.tensor(9.0, dtype=torch.float64))
        return totals

    def decouple(tensors, scale):
        for u, row, out in tensors:
            jobs.decouple_chunks(u, row, scale, out)
            if change == "decoupled":
                out[torch.nonzero(out == 0)[0]] = 1e-30

    return unify, decouple


@pytest.mark.parametrize(
    ("change", "work"),
    [("", ""), ("u", "unify"), ("masks", "unify"), ("sizes", "unify"), ("decoupled", "decouple")],
)
def test_one_bit_otherwise_is_found_out(as_gpu, monkeypatch, caplog, change, work):
    unify, decouple = by_chunks(as_gpu, change)
    monkeypatch.setattr(as_gpu, "unify", unify)
    monkeypatch.setattr(as_gpu, "decouple", decouple)
    found = {work for work in ("unify", "decouple") if as_gpu.trusted(torch.device("cpu"), torch.float32, work)}
    assert found == {"unify", "decouple"} - {work}
    assert caplog.text.count("other bits than a CPU's") == (change != "")


def test_deltas_of_several_dtypes_and_small_ones_are_torchs(as_gpu, monkeypatch):
    monkeypatch.setattr(as_gpu, "trusted", lambda *what: True)
    one, half = torch.ones(9), torch.ones(9).half()
    assert module.gpu_kernels({"a": one, "b": one}, "unify") is as_gpu
    assert module.gpu_kernels({"a": one, "b": half}, "unify") is None
    monkeypatch.setattr(module, "FUSED_FROM", 19)
    assert module.gpu_kernels({"a": one, "b": one}, "unify") is None


def test_without_triton_torch_does_it(as_gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "condu_ray.merging.gpu_jobs", None)
    assert module.gpu_kernels({"w": torch.ones(9)}, "unify") is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gpu_makes_the_bits_of_a_cpu(monkeypatch, dtype):
    monkeypatch.setattr(module, "FUSED_FROM", 1)
    assert module.gpu_kernels({"w": torch.ones(9, dtype=dtype, device="cuda")}, "unify") is not None
    here, there = UnifiedDelta.empty(), UnifiedDelta.empty()
    for task, delta in enumerate(normal_deltas(11, 1, dtype, {"w": (3000, 9), "b": (7,)})):
        here = here.unify(str(task), delta)
        there = there.unify(str(task), {name: one.cuda() for name, one in delta.items()})
        assert there.to("cpu").equal(here), task
    for name, one in there.decouple("3").items():
        assert torch.equal(one.cpu(), here.decouple("3")[name])
