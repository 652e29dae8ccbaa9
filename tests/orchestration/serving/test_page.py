"""The page in a real browser: by mouse, by keyboard, as a screen reader reads it, on a telephone; no other host."""

import os
import re

import numpy as np
import pytest
from PIL import Image

from condu_ray.orchestration.serving.web import make_app
from condu_ray.use.serving import Serving
from tests.orchestration.serving.conftest import address_of

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def address(here):
    with address_of(make_app(here, Serving(max_bytes=200_000))) as address:
        yield address


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "a red wall.png"
    noise = np.random.default_rng(0).integers(-30, 30, (120, 160, 3)) + np.asarray((210, 40, 40))
    Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture(params=[(1100, 800), (360, 740)], ids=["desktop", "telephone"])
def page(chromium, address, request):
    """The page, with all that it asked for and complained of."""
    width, height = request.param
    context = chromium.new_context(viewport={"width": width, "height": height}, has_touch=width < 500)
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.asked, page.complaints, page.of = [], [], request.node.callspec.id
    page.on("request", lambda one: page.asked.append(one.url))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("console", lambda said: page.complaints.append(said.text) if said.type == "error" else None)
    page.goto(address)
    page.locator("#task option").nth(1).wait_for(state="attached")
    yield page
    context.close()


def shown(page, name):
    """Keeps a picture of the page where SHOTS says so, to be looked at."""
    if folder := os.environ.get("SHOTS"):
        page.screenshot(path=f"{folder}/{name}-{page.of}.png", full_page=True)


def until(there, gone):
    """Waits until there is one thing and not the other; the page's policy lets nobody evaluate texts in it to see."""
    there.wait_for(state="visible")
    gone.wait_for(state="detached")


def answered(page):
    page.locator("#answer").wait_for(state="visible")
    return page.locator("#best").inner_text()


def fits(page):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    return page.evaluate("[...document.querySelectorAll('button, select, textarea, #drop')].map(one => "
                         "one.getBoundingClientRect().height)")  # fmt: skip


def test_a_picture_is_chosen_and_answered(page, address, picture, here):
    shown(page, "empty")
    page.set_input_files("#file", picture)
    best = answered(page)
    rows = page.locator("#classes tr").all_inner_texts()
    assert len(rows) == 4  # names of classes of three tasks
    name, percent = re.fullmatch(r"(\w+), ([\d.]+) %", best).groups()
    assert rows[0].split() == [name, percent]
    assert sum(float(row.split()[-1]) for row in rows) == pytest.approx(100, abs=0.3)
    experts = page.locator("#experts tr").all_inner_texts()
    assert sum(float(row.split()[-1]) for row in experts) == pytest.approx(1, abs=0.02)
    (own,) = here.edition.predictor.predict(picture)
    assert (own.label, [row.split()[0] for row in experts]) == (name, list(own.experts))
    assert page.locator("#best").evaluate("one => one.getBoundingClientRect().top < innerHeight")  # without scrolling
    assert "the router takes it for" in page.locator("#sure").inner_text()
    assert page.locator("#state").inner_text() == here.about.name
    assert min(fits(page)) >= 44  # as large as a finger
    shown(page, "answered")
    page.select_option("#task", "doors")
    until(page.locator("#classes tr").nth(1), page.locator("#classes tr").nth(2))
    assert page.locator("#experts tr").all_inner_texts()[0].split()[0] == "doors"
    shown(page, "task")
    # the picture itself is a blob of the page's own
    assert {re.match(r"(blob:)?(http://[^/]+|data:)", url)[2] for url in page.asked} <= {address, "data:"}
    assert page.complaints == []


def test_it_is_used_by_keyboard_alone(page, picture):
    order = []
    for _ in range(6):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert order[:3] == ["file", "task", "words"]  # nothing to ask about yet, so no button
    page.set_input_files("#file", picture)  # the system's own dialog is not ours to press
    answered(page)
    page.focus("#words")
    page.keyboard.type("a cat, a dog")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "ask"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.keyboard.press("Enter")
    until(page.locator("#classes tr").nth(1), page.locator("#classes tr").nth(2))
    assert sorted(row.rsplit(None, 1)[0] for row in page.locator("#classes tr").all_inner_texts()) == ["a cat", "a dog"]


def test_a_screen_reader_has_names_for_all_of_it(page, picture):
    page.set_input_files("#file", picture)
    answered(page)
    tree = page.locator("body").aria_snapshot()
    for words in ('heading "What is on this picture?"', 'button "Picture"', 'combobox "Task"', 'button "Ask"',
                  'textbox "Other words to choose from"', 'table "Classes"', 'table "Experts that answered"',
                  'columnheader "percent"', "status: "):  # fmt: skip
        assert words in tree, (words, tree)
    assert re.search(r"status: \"?Answered: \w+, [\d.]+ percent", tree)
    assert re.search(r'rowheader "\w+"\n\s+- cell "[\d.]+"', tree)
    assert page.locator("#shown").get_attribute("alt")
    low = page.evaluate(CONTRAST)
    assert low == [], low


CONTRAST = """() => {
  const light = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(part => {
      const share = part / 255;
      return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = one => {
    for (; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (!colour.match(/, 0\\)$/)) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  return [...document.querySelectorAll('h1, h2, p, label, th, td, a, button, select, textarea')].filter(one => {
    if (!one.textContent.trim() || !one.offsetParent) return false;
    const [dark, bright] = [light(getComputedStyle(one).color), light(ground(one))].sort((a, b) => a - b);
    return (bright + 0.05) / (dark + 0.05) < 4.5;
  }).map(one => one.outerHTML.slice(0, 80));
}"""
"""Texts whose contrast is below WCAG's 4.5 to 1."""


def test_what_is_refused_is_said(page, tmp_path, picture):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    page.set_input_files("#file", broken)
    page.locator("#said.wrong").wait_for()
    assert "Not answered: the picture does not decode" in page.locator("#said").inner_text()
    assert not page.locator("#answer").is_visible()
    shown(page, "refused")
    large = tmp_path / "large.png"
    large.write_bytes(bytes(300_000))
    page.set_input_files("#file", large)
    page.locator("#said", has_text="more than 200,000 bytes").wait_for()
    page.set_input_files("#file", picture)
    answered(page)
    assert page.locator("#said.wrong").count() == 0


def test_a_picture_is_dropped(page, picture):
    page.evaluate("""async content => {
      const file = new File([Uint8Array.from(atob(content), one => one.charCodeAt(0))], 'dropped.png');
      const carried = new DataTransfer();
      carried.items.add(file);
      for (const kind of ['dragenter', 'dragover', 'drop'])
        document.getElementById('drop').dispatchEvent(new DragEvent(kind, { dataTransfer: carried, bubbles: true }));
    }""", __import__("base64").b64encode(picture.read_bytes()).decode())  # fmt: skip
    answered(page)
    assert "dropped.png" in page.locator("#hint").inner_text()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_reference_is_a_page_that_fits(chromium, address, dark):
    context = chromium.new_context(viewport={"width": 360, "height": 740}, color_scheme="dark" if dark else "light")
    page = context.new_page()
    page.goto(f"{address}/docs")
    page.of = "dark" if dark else "light"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("h2").first.inner_text() == "POST /predict"
    page.click("text=Prediction >> nth=0")
    shown(page, "docs")
    context.close()
