"""Prompts as a backbone reads them: how many tokens they have, which are cut, and which classes become one text."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from condu_ray.benchmark import Task
from condu_ray.benchmark.tasks import META, TaskError

LOOK = 256
"""Tokens up to which a prompt's length is told; longer ones are told as so many."""
BATCH = 256
"""Prompts that are tokenised at once."""
WORDS, LETTERS = 100_000, 100
"""Words whose tokens a tokenizer of open_clip's keeps, at most, and letters of the longest: some 30 MB of them."""


@dataclass(frozen=True)
class Texts:
    """How a backbone reads a task's prompts: over all templates and classes.

    Attributes:
        longest: tokens of the longest prompt, those that begin and end it among them.
        context: tokens that the backbone reads.
        cut: prompts that have more, and lose their ends.
    """

    longest: int
    context: int
    cut: int


def foreign(tokenizer: Any) -> bool:
    """Whether a tokenizer is one of Hugging Face's, in open_clip's wrapper, and not open_clip's own."""
    return hasattr(getattr(tokenizer, "tokenizer", tokenizer), "get_vocab")


class KeptWords(dict[str, str]):
    """Words and their tokens, in place of the dict of a tokenizer of open_clip's, which keeps every word for ever.

    What has come is never dropped, for a tokenizer that several threads use looks a word up twice.
    """

    def __setitem__(self, word: str, tokens: str) -> None:
        if len(self) < WORDS and len(word) <= LETTERS:
            super().__setitem__(word, tokens)


def keep_few(tokenizer: Any) -> Any:
    """Returns a tokenizer; open_clip's own keeps few words from now on, for those of strangers have no end."""
    if isinstance(getattr(tokenizer, "cache", None), dict):
        tokenizer.cache = KeptWords(tokenizer.cache)
    return tokenizer


def drops_out(model: nn.Module) -> bool:
    """Whether a model's text tower leaves units out while it is trained, as those of Hugging Face do (XLM-R)."""
    tower = getattr(model, "text", None)  # open_clip's own, which has none, is in the model itself
    return tower is not None and any(isinstance(one, nn.Dropout) and one.p > 0 for one in tower.modules())


def check_texts(tokenizer: Any, task: Task, backbone: str, *, cut: bool) -> Texts:
    """Refuses prompts that a backbone cannot tell apart, or does not read to their ends.

    Args:
        tokenizer: open_clip's, or one that is called like it.
        task: with its classes and templates.
        backbone: its name, for messages.
        cut: whether prompts may be longer than the context, and lose their ends.

    Raises:
        TaskError: a prompt is too long and may not be cut, two classes are the same tokens under a template, or
            nothing of a class name is left; names the classes and what to do.
    """
    context, longest, lost = int(tokenizer([""]).shape[1]), 0, 0
    example, equal = "", ""
    for template in task.templates:
        # A prompt without its class tells whether anything is left of a name.
        prompts = [template.replace("{}", name) for name in (*task.classes, "")]
        tokens, lengths, is_cut = read(tokenizer, prompts)
        shortened = [index for index in range(len(task.classes)) if is_cut[index]]
        if shortened and not lost:
            longest_one = max(shortened, key=lengths.__getitem__)
            example = f"{shown(prompts[longest_one])} with {lengths[longest_one]}"
        lost += len(shortened)
        longest = max([longest, *lengths[:-1]])
        equal = equal or alike(task.classes, tokens, is_cut)
    by_chance = getattr(tokenizer, "reduction_fn", None) is not None
    where = f"{task.folder / META}"
    if lost and (by_chance or not cut):
        cure = "for its tokenizer leaves out tokens by chance" if by_chance else "or give --long_prompts cut"
        raise TaskError(
            f"{where}: {lost} of {len(task.classes) * len(task.templates)} prompts have more tokens than the {context} "
            f"that backbone {backbone} reads, such as {example}; shorten the template or the class names, {cure}"
        )
    if equal:
        raise TaskError(f"{where}: to backbone {backbone} {equal}")
    return Texts(longest, context, lost)


def read(tokenizer: Any, prompts: Sequence[str]) -> tuple[Tensor, list[int], list[bool]]:
    """Tokenises prompts once as a model does, and once with room for all of their tokens.

    Works by what the tokenizer returns alone, for all of open_clip's (its own, and wrappers of Hugging Face's with
    padding, begin and end of many kinds) take another context length.

    Returns:
        Tokens [P, L], whose rows are equal where those that a model gets are; lengths in tokens; whether each is cut.
    """
    uncut = _tokens(tokenizer, prompts, LOOK)
    lengths = _lengths(uncut, tokenizer([""], context_length=LOOK))
    empty = tokenizer([""])
    if max(lengths) < empty.shape[1] - 2:  # room for a begin, an end and a class token that padding hides
        return uncut, lengths, [False] * len(lengths)
    tokens = _tokens(tokenizer, prompts, empty.shape[1])
    kept = _lengths(tokens, empty)
    return tokens, lengths, [short != whole for short, whole in zip(kept, lengths, strict=True)]


def _tokens(tokenizer: Any, prompts: Sequence[str], context: int) -> Tensor:
    parts = (prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH))
    return torch.cat([tokenizer(list(part), context_length=context) for part in parts])


def _lengths(tokens_PL: Tensor, empty_1L: Tensor) -> list[int]:
    """Number of tokens up to the last one that differs from an empty text's, whatever it is padded with."""
    places = torch.arange(1, tokens_PL.shape[1] + 1)
    return [int(length) for length in ((tokens_PL != empty_1L) * places).amax(dim=1)]


def alike(classes: Sequence[str], tokens: Tensor, is_cut: Sequence[bool]) -> str:
    """Says which classes have equal tokens, or none of their own; empty where there are none.

    Args:
        classes: their names.
        tokens: of a prompt each, and of one without a name behind them; as of `read`.
        is_cut: of the same.
    """
    first: dict[bytes, int] = {}
    pairs: list[tuple[int, int]] = []
    rows = [row.tobytes() for row in tokens.numpy()]
    for index, row in enumerate(rows[:-1]):
        if (earlier := first.setdefault(row, index)) != index:
            pairs.append((earlier, index))
    lost = first.get(rows[-1])
    if lost is not None:
        why = " once its prompt is cut" if is_cut[lost] else ""
        return f"nothing is left of class {lost} {shown(classes[lost])}{why}; give it a name of letters or digits"
    if not pairs:
        return ""
    one, other = pairs[0]
    both = classes[one], classes[other]
    look_alike = len({unicodedata.normalize("NFKC", name) for name in both}) == 1  # in a message
    told = [ascii(name) if look_alike else shown(name) for name in both]
    more = {1: "", 2: ", as is 1 more pair"}.get(len(pairs), f", as are {len(pairs) - 1} more pairs")
    why = " once their prompts are cut" if is_cut[one] or is_cut[other] else ""
    return (
        f"classes {one} {told[0]} and {other} {told[1]} are the same tokens{why}{more}, so that they can never both "
        "be right; rename or join them"
    )


def shown(text: str) -> str:
    """Returns a text as messages have it, the middle of a long one left out."""
    return repr(text if len(text) <= 60 else f"{text[:40]} ... {text[-15:]}")
