"""Every page of the repository: its links, paths, commands and made places are those of the tree as it is."""

import importlib.util
import re
import runpy
import shlex
import sys
from functools import cache
from pathlib import Path

import pytest

from condu_ray.command_line import parse
from condu_ray.config import Experiment, Sweep

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("docs_of_ci", ROOT / ".ci" / "docs.py")
docs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(docs)

PAGES = docs.pages()
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
PARSED = {"jobs/run_mtil.py": Experiment, "jobs/sweep_orders.py": Sweep}
"""Commands whose flags are the configuration's and nothing else: their values are read, too."""


def name(page):
    return str(page.relative_to(ROOT))


each_page = pytest.mark.parametrize("page", PAGES, ids=name)


def without_code(text):
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def anchors(text):
    """The headings of a page as GitHub names them in links."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(TEXTS[page])):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(TEXTS[target]), link


@each_page
def test_files_that_are_named_are_there(page):
    new = set(re.findall(r"[Ss]ave it as\s+`([^`]+)`", TEXTS[page]))
    for path in re.findall(r"`((?:condu_ray|jobs|tests|cluster|dashboards|\.ci)/[\w./-]+)(?:::\w+)?`", TEXTS[page]):
        assert path in new or (ROOT / path).exists(), path


@each_page
def test_tests_that_are_named_exist(page):
    for file, test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXTS[page]):
        text = (ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^ *def {test}\(", text, re.MULTILINE), f"{file}::{test}"


def test_each_row_of_the_faults_names_its_tests():
    page = ROOT / "condu_ray" / "orchestration" / "FAULTS.md"
    rows = re.findall(r"^\| (?!what happens|---)(.*) \|$", TEXTS[page], re.MULTILINE)
    assert len(rows) > 10
    for row in rows:
        assert re.search(r"`tests/[\w/]+\.py::\w+`", row.split(" | ")[2]), row


def commands(text):
    """The words of each `python jobs/...` in code, behind `python`."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "\n".join(fenced).replace("\\\n", "").splitlines()
    lines += [code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", without_fences(text))]
    for line in lines:
        if found := re.search(r"\bpython (jobs/.*)", line):
            yield shlex.split(re.split(r"\s+#|\s&$", found[1])[0])


def without_fences(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


@cache
def help_of(job):
    """What a command prints for `--help`; it is run in this process, for the imports of most are the same."""
    import contextlib
    import io

    before, printed = sys.argv, io.StringIO()
    sys.argv = [job, "--help"]
    try:
        with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / job), run_name="__main__")
    finally:
        sys.argv = before
    assert ended.value.code in (0, None), job
    return printed.getvalue()


def console_commands(text):
    """The words of each `condu-ray NAME ...` in fenced code, behind `condu-ray`."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for line in "\n".join(fenced).replace("\\\n", "").splitlines():
        if line.startswith("condu-ray "):
            yield shlex.split(re.split(r"\s+#|\s&$", line)[0])[1:]


@pytest.mark.parametrize("words", sorted({tuple(one) for text in TEXTS.values() for one in console_commands(text)}))
def test_a_console_command_has_its_flags(words, monkeypatch, capsys):
    from condu_ray.commands.__main__ import main

    monkeypatch.setattr(sys, "argv", ["condu-ray", words[0], "--help"])
    with pytest.raises(SystemExit):
        main()
    known = set(re.findall(r"--[\w.-]+", capsys.readouterr().out))
    for word in words[1:]:
        assert not word.startswith("--") or word in known, word


COMMANDS = sorted({tuple(words) for text in TEXTS.values() for words in commands(text)})


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words)[:80])
def test_a_command_has_its_file_and_flags(words):
    job, *flags = words
    if not (ROOT / job).is_file():
        assert "*" in job, job  # `python jobs/*.py`: all of them
        assert list(ROOT.glob(job))
        return
    known = set(re.findall(r"--[\w.-]+", help_of(job)))
    for flag in flags:
        if flag.startswith("--"):
            assert flag.split("=")[0] in known, f"{job} {flag}"
    if job in PARSED and "--help" not in flags:
        parse(flags, PARSED[job])


@each_page
def test_console_commands_that_are_named_are_there(page):
    named = set(re.findall(r"(?:^|`)condu-ray ([a-z][a-z-]*)", TEXTS[page], re.MULTILINE))
    if named:
        from condu_ray.commands import __main__ as console

        assert named <= set(console.COMMANDS)


@each_page
def test_targets_of_make_that_are_named_are_there(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    fenced = re.findall(r"^make ([a-z-]+)", "\n".join(re.findall(r"```\n(.*?)```", TEXTS[page], re.DOTALL)), re.M)
    assert {*fenced, *re.findall(r"`make ([a-z-]+)", TEXTS[page])} <= targets


def test_what_takes_minutes_is_left_to_its_own_target():
    """An expression given to pytest takes the place of the default one, which leaves these out."""
    made = re.findall(r"^(\S+):.*\n\t.* -m pytest .*-m (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert {target: "not long" in chosen for target, chosen in made} == {"test-fast": True, "test-long": False}


@each_page
def test_python_in_a_page_compiles(page):
    for code in re.findall(r"^```python\n(.*?)^```", TEXTS[page], re.MULTILINE | re.DOTALL):
        compile(code, str(page), "exec")


def test_made_places_are_as_they_would_be_made():
    assert [name(page) for page in docs.stale()] == [], "run `make docs`"


def test_a_place_without_an_end_or_of_no_kind_is_refused():
    for text, why in (("<!-- made by make docs: floors -->\n", "has no end"), (MARKED, "nothing makes 'walls'")):
        with pytest.raises(ValueError, match=why):
            docs.made(text, ROOT / "README.md")


MARKED = "<!-- made by make docs: walls -->\n<!-- end -->"


def test_every_result_is_shown_and_no_table_is_typed():
    page = ROOT / "condu_ray" / "report" / "RESULTS.md"
    shown = {
        match[2] for text in TEXTS.values() for match in docs.BLOCK.findall(text) if match[1] in ("results", "table")
    }
    assert shown == {path.stem for path in docs.results_page.FOLDER.glob("*.json")}
    assert "\n|" not in docs.BLOCK.sub("", TEXTS[page])


def test_words_of_the_glossary_are_in_their_files():
    page = ROOT / "condu_ray" / "GLOSSARY.md"
    rows = re.findall(r"^\| ([\w ]+) \| .* \| \[.*\]\((.*)\) \|$", TEXTS[page], re.MULTILINE)
    assert len(rows) > 40
    for word, file in rows:
        text = (page.parent / file).read_text(encoding="utf-8").lower().replace("_", " ")
        # As a word of its own, or as a plural.
        assert re.search(rf"\b{word.lower()}s?\b", text), f"{word}: not in {file}"


def test_the_first_page_is_short():
    assert len(TEXTS[ROOT / "README.md"].splitlines()) <= 150
