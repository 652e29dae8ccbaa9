import json

import pytest
import torch

from condu_ray.ablation.spectra import MATRICES, ablate_spectra, spectral_delta
from condu_ray.ablation.synthetic import SCALE
from condu_ray.commands.ablate_bits import main
from condu_ray.merging.keeping import keepers
from condu_ray.report.spectra_report import write_spectra


@pytest.mark.parametrize("decay", [0, 0.5, 2])
def test_singular_values_fall_as_asked_and_sizes_are_alike(decay):
    delta = spectral_delta(3, 24, decay, seed=1)
    assert len(delta) == MATRICES
    expected = torch.arange(1, 25, dtype=torch.float64) ** -decay
    for matrix in delta.values():
        found = torch.linalg.svdvals(matrix.double())
        torch.testing.assert_close(found / found[0], expected, rtol=1e-5, atol=1e-6)
        assert matrix.square().mean().sqrt() == pytest.approx(SCALE, rel=1e-5)


def test_equal_arguments_give_equal_bytes_and_others_nothing_in_common():
    one, again = spectral_delta(0, 32, 1, 0), spectral_delta(0, 32, 1, 0)
    assert all(torch.equal(one[name], again[name]) for name in one)
    for other in (spectral_delta(1, 32, 1, 0), spectral_delta(0, 32, 1, 1)):
        for name, matrix in one.items():
            cosine = torch.cosine_similarity(matrix.flatten(), other[name].flatten(), dim=0)
            assert abs(cosine) < 0.2
    assert not torch.equal(one["w1"], one["w2"])


def test_steep_spectra_are_the_svds_and_flat_ones_the_signs(tmp_path):
    names = ("condu", "sign, rows", "condu-svd 1")
    rules = {name: rule for name, rule in keepers((1.0,)).items() if name in names}
    results = ablate_spectra(4, 96, [0, 1], rules, [2, 4], seed=0)
    lost = {(row["rule"], row["tasks"], row["decay"]): row["relative_l2"] for row in results["rows"]}
    assert len(lost) == len(results["rows"]) == 12
    assert lost["sign, rows", 4, 0] < lost["condu-svd 1", 4, 0] < 1
    assert lost["condu-svd 1", 4, 1] < lost["sign, rows", 4, 1]
    assert lost["condu", 2, 0] < lost["condu", 4, 0]  # the others depend on no number of tasks
    assert lost["sign, rows", 2, 0] == lost["sign, rows", 4, 0] == pytest.approx((1 - 2 / torch.pi) ** 0.5, abs=0.02)
    written = write_spectra(results, tmp_path)
    assert {one.name for one in written} == {"spectra.json", "spectra-table.json", "spectra.md", "spectra.png"}
    table = json.loads((tmp_path / "spectra-table.json").read_text())
    assert len(table["rows"]) == 6
    assert all(len(row) == len(table["columns"]) for row in table["rows"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--synthetic", "1"], "--synthetic 1 --side 512: at least 2 tasks"),
        (["--synthetic", "3", "--side", "1"], "--side 1"),
        (["--synthetic", "3", "--decays", "0,x"], "--decays 0,x: not numbers"),
        (["--synthetic", "3", "--decays", "-1"], "--decays -1.0: exponents are 0 or more"),
        (["--synthetic", "3", "--sessions", "5"], "5"),
    ],
)
def test_the_job_refuses(tmp_path, capsys, flags, words):
    with pytest.raises(SystemExit) as end:
        main([*flags, "--storage", str(tmp_path)])
    assert end.value.code == 2
    assert words in capsys.readouterr().err
