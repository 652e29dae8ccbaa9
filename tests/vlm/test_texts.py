"""Prompts that a backbone cuts or cannot tell apart are found by every kind of tokenizer that open_clip has."""

import copy
import unicodedata
from types import SimpleNamespace

import pytest
import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer, get_clean_fn
from torch import nn

from condu_ray.benchmark import Task, TaskError
from condu_ray.benchmark.mtil.catalog import CATALOG
from condu_ray.store.location import Location
from condu_ray.vlm import texts
from condu_ray.vlm.model import backbone_spec, load_backbone
from condu_ray.vlm.texts import Texts, check_texts, drops_out, read

CLEANED = ("lower", "canonicalize", "whitespace")
OWN = {clean: SimpleTokenizer(clean=clean) for clean in CLEANED}
CONTEXT = 8


def task(*classes, templates=("a photo of a {}.",)):
    return Task("birds", Location("/data/birds"), tuple(classes), tuple(templates), 1, 1)


def check(tokenizer, *given, cut=False, **more):
    return check_texts(tokenizer, task(*given, **more), "some-clip", cut=cut)


class Words:
    """Stands in for a tokenizer of Hugging Face's: 40 words and one for all others, what comes around, padding."""

    bos_token_id, eos_token_id, cls_token_id, sep_token_id, unknown = 1, 2, 3, 2, 4

    def __init__(self, begin=(), end=(), pad=0):
        self.begin, self.end, self.pad_token_id = list(begin), list(end), pad
        self.words = {f"w{number}": 5 + number for number in range(40)}

    def __call__(self, texts, *, max_length=None, add_special_tokens=True, **_):
        rows = [[self.words.get(word, self.unknown) for word in text.split()] for text in texts]
        if not add_special_tokens:
            return {"input_ids": rows}
        room = max_length - len(self.begin) - len(self.end)
        rows = [self.begin + row[:room] + self.end for row in rows]
        return SimpleNamespace(
            input_ids=torch.tensor([row + [self.pad_token_id] * (max_length - len(row)) for row in rows])
        )


def wrapped(inner, mode="", strip=False):
    """open_clip's wrapper, whose constructor would load files."""
    tokenizer = HFTokenizer.__new__(HFTokenizer)
    tokenizer.tokenizer, tokenizer.tokenizer_mode, tokenizer.strip_sep_token = inner, mode, strip
    tokenizer.context_length, tokenizer.clean_fn = CONTEXT, get_clean_fn("whitespace")
    return tokenizer


KINDS = {
    # A tokenizer of `CONTEXT` tokens, and how many of them are not the text's own.
    "own": (SimpleTokenizer(context_length=CONTEXT), 2),
    "reduced": (SimpleTokenizer(context_length=CONTEXT, reduction_mask="simple"), 2),
    "bert": (wrapped(Words(begin=[3], end=[2])), 2),
    "stripped": (wrapped(Words(begin=[3], end=[2]), strip=True), 2),
    "siglip": (wrapped(Words(end=[1], pad=1)), 1),  # padded by what ends a text
    "clips": (wrapped(Words(), mode="clips"), 3),  # its class token comes behind the padding
}


@pytest.mark.parametrize("words", range(1, 2 * CONTEXT))
@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_is_cut_when_it_has_a_token_more_than_there_is_room_for(kind, words):
    tokenizer, around = KINDS[kind]
    sign = "w" if isinstance(tokenizer, SimpleTokenizer) else "w1"
    text = " ".join([sign] * words)
    _, (length, _), (cut, _) = read(tokenizer, [text, sign])
    assert cut == (words + around > CONTEXT)
    assert words <= length <= words + around


SAME = [
    # Two names, and what of the cleaners makes them one.
    ("Salt &amp; Pepper", "Salt & Pepper", CLEANED),
    ("A &lt; B", "A < B", CLEANED),
    ("\uff21\uff22\uff23", "ABC", CLEANED),  # full-width letters
    ("\ufb01sh", "fish", CLEANED),  # a ligature
    ("Caf\u00e9", "Cafe\u0301", CLEANED),  # a composed accent, and one on its own
    ("\u212b", "\u00c5", CLEANED),  # the sign of the unit, and the letter
    ("\u00c3\u00a9", "\u00e9", CLEANED),  # UTF-8 that was read as Latin-1
    ("Tom\u2019s", "Tom's", CLEANED),
    ("\u201cred\u201d", '"red"', CLEANED),
    ("Polish", "polish", ("lower", "canonicalize")),
    ("tree  frog", "tree frog", CLEANED),
    ("tree\u00a0frog", "tree frog", CLEANED),
    ("1 2", "12", CLEANED),  # digits are tokens of their own, spaces are none
    ("dog.", "dog", ("canonicalize",)),
    ("C++", "C", ("canonicalize",)),
    ("a_b", "a b", ("canonicalize",)),
    ("x-ray", "xray", ("canonicalize",)),
    ("na\u00efve", "naive", ()),
    ("CO\u2082", "CO2", ()),
    ("stra\u00dfe", "strasse", ()),
]


@pytest.mark.parametrize("clean", CLEANED)
@pytest.mark.parametrize(("one", "other", "where"), SAME, ids=[ascii(case[:2]) for case in SAME])
def test_names_that_a_tokenizer_makes_one_are_refused_where_it_does(one, other, where, clean):
    tokenizer = OWN[clean]
    if clean not in where:
        check(tokenizer, "tree", one, other)
        return
    with pytest.raises(TaskError) as caught:
        check(tokenizer, "tree", one, other)
    message = str(caught.value)
    for word in ("birds/meta.json", "some-clip", "classes 1", "and 2", "the same tokens", "rename or join"):
        assert word in message
    first, second = message[message.index("classes 1") : message.index(" are the same")].split(" and 2 ")
    assert first.removeprefix("classes 1 ") != second  # shown so that a person sees the difference
    if len({unicodedata.normalize("NFKC", name) for name in (one, other)}) == 1:
        assert (first + second).isascii()
    assert " more pair" not in message
    with pytest.raises(TaskError, match="tokens, as is 1 more pair, so that"):
        check(tokenizer, one, other, "5 6", "56", "tree")
    with pytest.raises(TaskError, match="tokens, as are 2 more pairs, so that"):
        check(tokenizer, one, other, "5 6", "56", "tree", "7 8", "78")


def test_words_that_a_vocabulary_lacks_are_one():
    tokenizer, _ = KINDS["bert"]
    check(tokenizer, "w1", "unknown", templates=("w2 {}",))
    with pytest.raises(TaskError, match="'unknown' and 3 'foreign' are the same tokens"):
        check(tokenizer, "w1", "w2", "unknown", "foreign", templates=("w2 {}",))


def test_a_name_of_which_nothing_is_left_is_refused():
    check(OWN["lower"], "---", "+")
    with pytest.raises(TaskError, match=r"nothing is left of class 1 '---'; give it a name of letters"):
        check(OWN["canonicalize"], "dog", "---")


LONG = "a photo that somebody took of a {}"
"""9 tokens with a class of one."""


@pytest.mark.parametrize(
    ("classes", "templates", "refused", "when_cut"),
    [
        (("cat", "dog"), (LONG,), ["2 of 2 prompts", "than the 8", "of a cat' with 10", "--long_prompts cut"], "left"),
        (("cat",), (LONG,), ["1 of 1 prompts"], "nothing is left of class 0 'cat' once its prompt is cut"),
        (("cat", "dog"), ("a {}.", LONG), ["2 of 4 prompts", "with 10"], "nothing is left"),
        (("cat", "dog"), (LONG, "a {}."), ["2 of 4 prompts", "with 10"], "nothing is left"),  # whichever comes last
        (
            ("the very old tabby cat", "the very old tabby dog", "fish"),
            ("a picture of a {}.",),
            ["2 of 3 prompts", "with 12"],
            "0 'the very old tabby cat' and 1 'the very old tabby dog' are the same tokens once their prompts are cut",
        ),
        (("cat", "dog"), ("a {} in a garden of old roses",), ["2 of 2 prompts", "with 10"], Texts(10, 8, 2)),
        (("cat", "dog"), ("a {} by the old", "{}"), None, Texts(7, 8, 0)),
        (("cat", "dog of us"), ("a {} by the",), None, Texts(8, 8, 0)),
    ],
)
def test_prompts_longer_than_the_context_are_refused_or_cut_knowingly(classes, templates, refused, when_cut):
    tokenizer, _ = KINDS["own"]
    if refused is None:
        assert check(tokenizer, *classes, templates=templates) == when_cut
    else:
        with pytest.raises(TaskError) as caught:
            check(tokenizer, *classes, templates=templates)
        for word in ("birds/meta.json", "some-clip", "shorten", *refused):
            assert word in str(caught.value)
    if isinstance(when_cut, str):
        with pytest.raises(TaskError, match=when_cut):
            check(tokenizer, *classes, templates=templates, cut=True)
    else:
        assert check(tokenizer, *classes, templates=templates, cut=True) == when_cut


def test_a_tokenizer_that_leaves_out_tokens_by_chance_may_not_cut():
    tokenizer = SimpleTokenizer(context_length=CONTEXT, reduction_mask="random")
    assert check(tokenizer, "cat", "dog") == Texts(8, 8, 0)
    with pytest.raises(TaskError, match="by chance"):
        check(tokenizer, "cat", "dog", templates=("a {} in a garden of old roses",), cut=True)


def test_longer_than_is_looked_at_is_too_long():
    with pytest.raises(TaskError, match="with 256"):
        check(KINDS["own"][0], "cat", templates=(f"{{}}{' a' * 3000}",))


def test_braces_in_a_name_are_text():
    assert check(OWN["lower"], "{}", "{0}", "set {1}", "}{").cut == 0


@pytest.mark.parametrize("clean", CLEANED)
@pytest.mark.parametrize("name", sorted(CATALOG))
def test_mtils_own_classes_are_read_whole_and_told_apart(name, clean):
    names = CATALOG[name].names()
    templates = names.templates if clean == "lower" else (max(names.templates, key=len),)  # OpenAI's reads them all
    assert check(OWN[clean], *names.classes, templates=templates).cut == 0


@pytest.mark.parametrize("share", [0.1, 0.0])
def test_a_tower_of_hugging_faces_leaves_units_out_where_it_says_so(share):
    transformers = pytest.importorskip("transformers")
    small = {
        "vocab_size": 8,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
    }
    shares = {"hidden_dropout_prob": share, "attention_probs_dropout_prob": share}
    config = transformers.XLMRobertaConfig(**small, **shares)
    tower = HFTextEncoder("", 8, config=config, pooler_type="mean_pooler", proj_type="linear")
    assert drops_out(SimpleNamespace(text=tower)) == (share > 0)


@pytest.mark.parametrize("share", [0.1, 0.0])
def test_a_tower_that_leaves_units_out_is_told_by_its_layers(share):
    assert drops_out(SimpleNamespace(text=nn.Sequential(nn.Linear(2, 2), nn.Dropout(share)))) == (share > 0)


def test_open_clips_own_towers_leave_nothing_out(small_backbone):
    assert not drops_out(load_backbone(backbone_spec(pretrained=str(small_backbone))).model)


def test_a_tokenizer_keeps_few_of_the_words_that_strangers_send(monkeypatch):
    tokenizer = load_backbone(backbone_spec()).tokenizer
    plain = copy.deepcopy(tokenizer)
    plain.cache = {}
    most = len(tokenizer.cache) + 10
    monkeypatch.setattr(texts, "WORDS", most)
    words = [f"q{one}{other}" for one in "abcdefgh" for other in "abcdefgh"]
    for _ in range(2):
        assert torch.equal(tokenizer(words), plain(words))
    assert len(tokenizer.cache) == most
    monkeypatch.setattr(texts, "WORDS", most + 1)
    tokenizer(["b" * 1000, "zebra"])
    assert len(tokenizer.cache) == most + 1
    assert "zebra" in tokenizer.cache
