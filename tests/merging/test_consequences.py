"""What follows from ConDU's rule, as properties over random deltas with zeros and ties."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from condu_ray.merging import UnifiedDelta

VALUES = st.one_of(
    st.just(0.0), st.floats(-8, 8, width=32).filter(lambda v: abs(v) > 1e-3), st.sampled_from([1.0, -1.0])
)


@st.composite
def delta_lists(draw):
    size = draw(st.integers(1, 20))
    tasks = draw(st.integers(1, 11))
    rows = draw(st.lists(st.lists(VALUES, min_size=size, max_size=size), min_size=tasks, max_size=tasks))
    dtype = draw(st.sampled_from((torch.float32, torch.float64)))
    cut = draw(st.integers(0, size))
    tensors = [torch.tensor(row, dtype=dtype) for row in rows]
    return [{"a": t[:cut].clone(), "b": t[cut:].clone()} for t in tensors]


def flat(delta):
    return torch.cat([delta[name].reshape(-1) for name in sorted(delta)]).double()


@settings(max_examples=40, deadline=None)
@given(delta_lists())
def test_consequences_of_the_rule(deltas):
    """Norms are kept, signs never turn (Lemma F.1), and what is decoupled is 0 or has the sign of u."""
    state = UnifiedDelta.empty()
    signs, norms = {}, {}
    for index, delta in enumerate(deltas):
        state = state.unify(str(index), delta)
        signs[str(index)], norms[str(index)] = flat(delta).sign(), flat(delta).abs().sum()
        u = flat(state.unified)
        for task in state.tasks:
            decoupled, mask = flat(state.decouple(task)), flat(state.mask(task)).bool()
            assert torch.equal(mask, decoupled != 0)
            assert torch.equal(decoupled.sign()[mask], u.sign()[mask])
            assert torch.equal(decoupled.sign()[mask], signs[task][mask])
            assert not mask[signs[task] == 0].any()
            signs[task] = decoupled.sign()
            if mask.any():
                torch.testing.assert_close(decoupled.abs().sum(), norms[task], rtol=2e-6, atol=0)
            else:
                assert state.rescalers[task] == 0
        # Every non-zero u comes from some task.
        assert torch.equal(u != 0, torch.stack([flat(state.mask(t)).bool() for t in state.tasks]).any(0))
