"""What is asked of pictures: which weights answer, among which classes; what cannot be answered is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from condu_ray.benchmark.label_space import XTAIL_TEMPLATE, Labels, label_space
from condu_ray.learn.features import PRETRAINED, Weights
from condu_ray.learn.routing import plain
from condu_ray.plan.measurement import kind, routed
from condu_ray.use.prediction import THETA0
from condu_ray.use.served import Served, UseError
from condu_ray.vlm.texts import alike, read, shown

Space = Literal["union", "xtail"]
"""How the classes of all tasks are chosen from, as a run's protocol of that name does."""


@dataclass(frozen=True)
class Question:
    """What is asked of some pictures.

    Attributes:
        weights: that answer; None: the router finds experts picture by picture.
        who: what these weights are called among the experts of a prediction.
        space: the classes that are asked of.
        open: whether these are a user's own words.
        apart: whether classes of one name in several tasks are several classes.
    """

    weights: Weights | None
    who: str
    space: tuple[Labels, ...]
    open: bool
    apart: bool = False


def question(
    served: Served,
    task: str | None,
    classes: Sequence[str] | None,
    templates: Sequence[str] | None,
    protocol: Space = "union",
) -> Question:
    """Finds who answers; arguments and errors as of `Predictor.predict`."""
    method, labels = served.method, served.task(task) if task is not None else None
    if protocol not in get_args(Space):
        raise UseError(f"protocol {protocol!r}: expected one of {', '.join(get_args(Space))}")
    apart = protocol == "xtail"
    if apart and not (task is None and classes is None):
        raise UseError("protocol xtail: is over the classes of all tasks; leave out the task and the classes")
    if templates is not None and classes is None:
        raise UseError("templates: are for classes that are given; leave them out")
    if task is None and kind(method) == "task identity":
        raise UseError(
            f"{served.name}: {method.name} cannot predict without knowing the task; give one of "
            f"{', '.join(served.state.tasks)}"
        )
    if classes is not None:
        default = labels.templates if labels else (XTAIL_TEMPLATE,)
        space: tuple[Labels, ...] = (words(served, classes, templates or default),)
    else:
        space = (labels,) if labels else label_space(protocol, served.labels)
    if labels is not None:
        weights, who = of_task(served, labels), labels.name
    elif kind(method) == "router":
        weights, who = None, ""
    else:  # one model: any task's weights are all tasks' weights
        weights, who = served.serving(served.state.tasks[-1]), method.name
    if weights is None:
        served.check_routing()
    elif weights.name == PRETRAINED.name:
        who = THETA0
    return Question(weights, who, space, classes is not None, apart)


def of_task(served: Served, labels: Labels) -> Weights | None:
    """Returns the weights that answer for a task as the run measures it under the protocol `task`; None: routed."""
    if routed(served.method, labels.name in served.state.tasks, "task"):
        return None
    return served.serving(labels.name)


def words(served: Served, classes: Sequence[str], templates: Sequence[str]) -> Labels:
    """Returns words that a user gives as classes.

    Raises:
        UseError: they are no good for prompts: none, an empty one, one twice, one too long, two that are the same
            tokens to the backbone, one of which nothing is left, a template without `{}`.
    """
    _listed("templates", templates)
    classes, templates = tuple(_listed("classes", classes)), tuple(templates)
    if not classes or not all(isinstance(name, str) and name.strip() for name in classes):
        raise UseError("classes: give at least one word, and no empty one")
    names = [plain(name) for name in classes]
    if doubled := [place for place, name in enumerate(names) if name in names[:place]]:
        first, again = classes[names.index(names[doubled[0]])], classes[doubled[0]]
        also = "" if first == again else f", as {first!r} (case and _ do not count)"
        raise UseError(f"classes: {again!r} is there twice{also}")
    for template in templates:
        if template.count("{}") != 1:
            raise UseError(f"template {template!r}: has to have one {{}}, where the class goes")
        # A prompt without its word tells whether anything is left of a word.
        prompts = [template.replace("{}", name) for name in (*classes, "")]
        tokens, _, is_cut = read(served.backbone.tokenizer, prompts)
        _require_short(served, classes, is_cut)
        if equal := alike(classes, tokens, is_cut):
            raise UseError(f"template {shown(template)}: to backbone {served.backbone.spec.name} {equal}")
    return Labels("", classes, templates)


def sentences(served: Served, texts: Sequence[str]) -> Labels:
    """Returns whole texts, in whose place no template stands; one may be there twice.

    Raises:
        UseError: there is none; or one is empty, no text or too long.
    """
    texts = tuple(_listed("texts", texts))
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UseError("texts: give at least one sentence, and no empty one")
    _require_short(served, texts, read(served.backbone.tokenizer, texts)[2])
    return Labels("", texts, ("{}",))


def _listed(name: str, given: Sequence[str]) -> Sequence[str]:
    if isinstance(given, str):  # whose letters would be words
        raise UseError(f"{name}: is the text {given!r}; give a list, such as [{given!r}]")
    return given


def _require_short(served: Served, words: Sequence[str], is_cut: Sequence[bool]) -> None:
    long = [word for word, cut in zip(words, is_cut, strict=False) if cut]
    if long and served.method.config.long_prompts == "refuse":
        raise UseError(f"{long[0]!r}: has more tokens than {served.backbone.spec.name} reads; shorten it")
