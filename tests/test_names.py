import pytest

from condu_ray.names import nearest


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("dors", ["walls", "doors"], " (did you mean doors?)"),
        ("MNIST", ["mnist", "dtd"], " (did you mean mnist?)"),
        ("vit-b-16", ["ViT-B-16"], " (did you mean ViT-B-16?)"),
        ("steps", ["shots", "training.steps"], " (did you mean training.steps?)"),
        ("lora.rnak", ["lora.rank", "rank"], " (did you mean lora.rank?)"),
        ("stesp", ["seed", "training.steps"], " (did you mean training.steps?)"),
        ("zzz", ["walls", "doors"], " (known: walls, doors)"),
        (7, ["walls", "doors"], " (known: walls, doors)"),
        ("zzz", [], " (known: none)"),
        ("zzz", [f"task {number}" for number in range(41)], ""),
    ],
)
def test_the_nearest_name_or_all(name, known, hint):
    assert nearest(name, known) == hint


def test_several_near_ones():
    assert nearest("cars", ["cats", "carts", "dogs"], most=3) == " (did you mean carts or cats?)"
    assert nearest("zzz", ["dogs"], most=3, label="there are") == " (there are: dogs)"
