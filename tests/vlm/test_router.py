import pytest
import torch

from condu_ray.vlm.router import PRETRAINED, candidates, similarities

WEIGHTS = torch.tensor([[0.1, 0.9, 0.5, 0.7], [0.6, 0.6, -0.2, -0.3], [-0.1, -0.2, -0.3, -0.4]])


def test_similarity_is_the_best_class_of_each_task():
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    prototypes = [torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[0.0, -1.0]])]
    assert torch.allclose(similarities(images, prototypes), torch.tensor([[1.0, 0.0], [0.8, -1.0]]))


def test_the_public_codes_choice_pretrained_first_equal_weights():
    index, weight = candidates(WEIGHTS, top_k=3, include_pretrained=True, aggregation="mean")
    assert index.tolist() == [[PRETRAINED, 1, 3], [PRETRAINED, 0, 1], [PRETRAINED, 0, 1]]
    assert torch.allclose(weight, torch.full((3, 3), 1 / 3))


def test_the_papers_choice_weighted_by_similarity():
    index, weight = candidates(WEIGHTS, top_k=2, include_pretrained=False, aggregation="weighted")
    assert index.tolist() == [[1, 3], [0, 1], [0, 1]]
    assert torch.allclose(weight[0], torch.tensor([0.9, 0.7]) / 1.6)
    assert torch.allclose(weight[1], torch.tensor([0.5, 0.5]))
    assert torch.allclose(weight[2], torch.tensor([0.5, 0.5]))  # nothing similar: equal


def test_a_weighted_pretrained_model_counts_as_the_best_expert():
    index, weight = candidates(WEIGHTS, top_k=3, include_pretrained=True, aggregation="weighted")
    assert index[0].tolist() == [PRETRAINED, 1, 3]
    assert torch.allclose(weight[0], torch.tensor([0.9, 0.9, 0.7]) / 2.5)


def test_a_pretrained_model_of_equal_weight_leaves_the_rest_to_the_experts():
    index, weight = candidates(
        WEIGHTS, top_k=3, include_pretrained=True, aggregation="weighted", pretrained_weight="equal"
    )
    assert index[0].tolist() == [PRETRAINED, 1, 3]
    assert torch.allclose(weight[0], torch.tensor([1, 2 * 0.9 / 1.6, 2 * 0.7 / 1.6]) / 3)
    assert torch.allclose(weight[2], torch.full((3,), 1 / 3))  # nothing similar: equal


@pytest.mark.parametrize("top_k", [1, 2, 5, 9])
@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize(("aggregation", "pretrained"), [("mean", "best"), ("weighted", "best"), ("weighted", "equal")])
def test_weights_sum_to_one_and_no_more_than_k(top_k, include, aggregation, pretrained):
    index, weight = candidates(
        WEIGHTS, top_k=top_k, include_pretrained=include, aggregation=aggregation, pretrained_weight=pretrained
    )
    assert index.shape == weight.shape
    assert index.shape[1] == min(top_k, 4 + include)
    assert torch.allclose(weight.sum(dim=1), torch.ones(3))
    assert all(len(set(row)) == len(row) for row in index.tolist())


def test_an_unknown_aggregation_is_refused():
    with pytest.raises(ValueError, match="median"):
        candidates(WEIGHTS, top_k=2, include_pretrained=True, aggregation="median")
