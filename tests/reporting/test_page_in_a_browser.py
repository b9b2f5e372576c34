"""The page in Chromium: drawn, clicked, narrow, dark, printed, and by keyboard."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from scaling_fl.reporting import page, records
from tests.reporting import builders

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="this machine has no Chromium")
DRAWN = "[...document.querySelectorAll('.chart')].every(chart => chart.dataset.drawn === 'yes')"
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages `one.html`, of one job, `two.html`, of two, and `sweep.html`, of many."""
    folder = tmp_path_factory.mktemp("pages")
    paths = [
        builders.job(folder, name, each="accuracy", loss=0.25, seed=seed)
        for seed, name in enumerate(("news", "reviews"))
    ]
    page.write(records.find(paths[0]), folder / "one.html")
    page.write(records.find(*paths), folder / "two.html")
    cells = [
        builders.cell(folder, f"{model}-{n}-{seed}", [0.25, 0.5, 0.75 - n / 64], model=model, num_sites=n, seed=seed)
        for model in ("albert", "bert", "distilbert")
        for n in (1, 2, 4, 8)
        for seed in (1, 2)
    ]
    page.write(records.find(*cells), folder / "sweep.html")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Browser, folder: Path) -> Iterator[Open]:
    """Open a page that must neither use the network nor report an error."""
    troubles, contexts = list[str](), list[Any]()

    def open_(name: str = "one.html", width: int = 1400, **options: Any) -> Page:
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **options))
        found: Page = contexts[-1].new_page()
        found.set_default_timeout(300_000)  # ms: for machines that are busy with other things
        found.on("pageerror", lambda error: troubles.append(str(error)))
        found.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
        found.on(
            "request", lambda asked: None if asked.url.startswith(("file:", "data:")) else troubles.append(asked.url)
        )
        found.goto((folder / name).as_uri())
        return found

    expect.set_options(timeout=300_000)
    yield open_
    for context in contexts:
        context.close()
    assert troubles == []


def test_a_reader_filters_mistakes_opens_tables_and_copies_the_command(opened: Open) -> None:
    one = opened(permissions=["clipboard-read", "clipboard-write"])
    one.wait_for_function(DRAWN)
    assert one.locator(".chart svg.marks").count() == 7
    rows = one.locator("#job-0-wrong tbody tr")
    expect(rows.filter(visible=True)).to_have_count(3)
    one.get_by_role("combobox", name="true label").select_option("sport")
    expect(rows.filter(visible=True)).to_have_count(1)
    expect(rows.filter(visible=True)).to_contain_text("</script><b>nobody</b>")
    expect(one.locator(".filter output")).to_have_text("1 of 3")
    rounds = one.locator("#job-0-rounds")
    expect(rounds).to_be_hidden()
    one.get_by_text("Rounds", exact=True).click()
    expect(rounds).to_be_visible()
    one.get_by_role("button", name="Copy").click()
    expect(one.get_by_role("button", name="Copied")).to_be_visible()
    assert "job_name=news" in one.evaluate("navigator.clipboard.readText()")


def test_a_reader_finds_what_the_model_writes(opened: Open) -> None:
    one = opened()
    one.get_by_role("link", name="Written").click()
    rows = one.get_by_role("region", name="What the model writes").locator("tbody tr")
    expect(rows).to_have_count(2)
    cells = rows.first.locator("th, td")
    assert cells.all_text_contents() == ["1", "<|user|>\nWhich?", "this", "that & </script><i>those</i>"]
    assert cells.nth(1).evaluate("cell => getComputedStyle(cell).whiteSpace") == "pre-wrap"


def test_pointing_at_a_site_highlights_its_line(opened: Open) -> None:
    one = opened()
    one.wait_for_function(DRAWN)
    sites = one.locator("#job-0-learning_curves .mark-line path[stroke-width='0.7']")
    before = sites.count()
    assert before == 3
    sites.first.hover(force=True)
    expect(sites).to_have_count(before - 1)


def test_the_charts_of_a_job_are_drawn_when_it_is_opened(opened: Open) -> None:
    two = opened("two.html")
    two.wait_for_selector("#comparison-costs svg")
    assert two.locator("#job-1 .chart svg.marks").count() == 0
    two.locator("details.job > summary").nth(1).click()
    expect(two.locator("#job-1 .chart svg.marks")).to_have_count(7)
    assert two.locator("#job-0 .chart svg.marks").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_the_page_fits_is_legible_and_accessible(opened: Open, scheme: str, width: int) -> None:
    one = opened(width=width, color_scheme=scheme)
    one.wait_for_function(DRAWN)
    assert one.evaluate("document.documentElement.scrollWidth") == width
    violations = Axe().run(one).response["violations"]
    assert [(found["id"], found["nodes"][0]["html"]) for found in violations] == []
    ink, paper = one.evaluate(
        "[getComputedStyle(document.querySelector('.chart .role-axis-title text')).fill,"
        " getComputedStyle(document.body).backgroundColor]"
    )
    bright = [sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 for colour in (ink, paper)]
    assert bright[0] < 60 < 200 < bright[1] if scheme == "light" else bright[1] < 60 < 200 < bright[0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_a_sweep_fits_and_its_labels_are_legible_on_lines(opened: Open, scheme: str, width: int) -> None:
    sweep = opened("sweep.html", width=width, color_scheme=scheme)
    sweep.wait_for_function(DRAWN)
    assert sweep.locator(".chart svg.marks").count() == 4
    assert sweep.evaluate("document.documentElement.scrollWidth") == width
    violations = Axe().run(sweep).response["violations"]
    assert [(found["id"], found["nodes"][0]["html"]) for found in violations] == []
    halo, ink, paper = sweep.evaluate(
        "(() => { const texts = [...document.querySelectorAll('#comparison-sweep_coordinates .mark-text text')]"
        ".filter(text => text.textContent === 'bert').map(text => getComputedStyle(text));"
        " return [texts[0].stroke, texts[1].fill, getComputedStyle(document.body).backgroundColor]; })()"
    )
    assert halo == paper
    bright = [sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 for colour in (ink, paper)]
    assert abs(bright[0] - bright[1]) > 140


def test_pointing_at_a_line_of_parallel_coordinates_highlights_it(opened: Open) -> None:
    sweep = opened("sweep.html")
    sweep.wait_for_function(DRAWN)
    lines = sweep.locator("#comparison-sweep_coordinates .mark-line path[stroke-width='1.3']")
    assert lines.count() == 12
    lines.first.scroll_into_view_if_needed()
    place = lines.first.evaluate(
        "path => { const { x, y } = path.getPointAtLength(path.getTotalLength() / 5).matrixTransform(path.getScreenCTM());"
        " return [x, y]; }"
    )
    sweep.mouse.move(*place)
    expect(lines).to_have_count(11)


def test_a_keyboard_reaches_the_results_first(opened: Open) -> None:
    one = opened()
    one.keyboard.press("Tab")
    focused = one.locator(":focus")
    expect(focused).to_have_text("Skip to the results")
    expect(focused).to_be_in_viewport()


def test_print_is_dark_on_white_and_shows_what_is_closed(opened: Open) -> None:
    one = opened(color_scheme="dark")
    one.wait_for_function(DRAWN)
    one.emulate_media(media="print")
    one.evaluate("dispatchEvent(new Event('beforeprint'))")
    colours = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    assert one.evaluate(colours) == ["rgb(255, 255, 255)", "rgb(0, 0, 0)"]
    expect(one.get_by_role("button", name="Copy")).to_be_hidden()
    expect(one.get_by_role("rowheader", name="devices")).to_be_visible()
    assert one.pdf().startswith(b"%PDF")
