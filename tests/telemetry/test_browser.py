"""The page in headless Chromium, offline: no error, no request, no serious violation, and charts that can be read."""

import shutil

import pytest

from brickreel import config
from brickreel.stages import report
from telemetry import rich_project

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    place = tmp_path_factory.mktemp("project")
    configuration = rich_project.write(place)
    rich_project.restarted(place, "restarted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        report.run(config.load(str(configuration)))
    return (place / "results/report/index.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def tab(browser, address, request):
    options = getattr(request, "param", {})
    context = browser.new_context(offline=True, **options)
    page = context.new_page()
    page.troubles = []
    page.on("console", lambda message: page.troubles.append(message.text))
    page.on("pageerror", lambda error: page.troubles.append(str(error)))
    page.on("request", lambda call: call.url.startswith(("file:", "data:")) or page.troubles.append(call.url))
    page.goto(address)
    yield page
    assert page.troubles == []
    context.close()


LOOKS = [
    {"color_scheme": scheme, "viewport": {"width": width, "height": 900}}
    for scheme in ("light", "dark")
    for width in (1280, 390)
]


@pytest.mark.parametrize("tab", LOOKS, indirect=True)
def test_it_fits_the_screen_and_has_no_serious_violation(tab):
    from axe_playwright_python.sync_playwright import Axe

    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert tab.evaluate("window.evil") is None
    results = Axe().run(tab).response
    serious = [item for item in results["violations"] if item["impact"] in ("serious", "critical")]
    assert [(item["id"], item["nodes"][0]["html"][:200], item["nodes"][0].get("any")) for item in serious] == []


def test_a_chart_is_read_by_pointing_and_zoomed_by_dragging(tab):
    figure = tab.locator("#learning-big + .pair .figure").first
    figure.scroll_into_view_if_needed()
    box = figure.locator("svg.chart").bounding_box()
    middle = box["y"] + box["height"] / 2
    tab.mouse.move(box["x"] + box["width"] / 2, middle)
    assert "training loss:" in figure.locator(".readout").inner_text()
    whole = figure.locator("svg.plot").get_attribute("viewBox")
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] * 0.8, middle, steps=4)
    tab.mouse.up()
    assert figure.locator("svg.plot").get_attribute("viewBox") != whole
    figure.press("Escape")
    assert [float(n) for n in figure.locator("svg.plot").get_attribute("viewBox").split()] == pytest.approx(
        [float(n) for n in whole.split()]
    )


def test_a_chart_is_read_with_the_keyboard(tab):
    figure = tab.locator("#learning-big + .pair .figure").first
    figure.focus()
    figure.press("ArrowRight")
    before = figure.locator(".readout").inner_text()
    figure.press("ArrowRight")
    assert before
    assert figure.locator(".readout").inner_text() != before


def test_a_table_is_sorted_by_a_click(tab):
    table = tab.locator("#ranks-big + .card table").first
    button = table.locator("th button", has_text="own work, ms")
    button.click()
    button.click()
    assert table.locator("tbody tr").first.locator("td").first.inner_text() == "3"
    assert table.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"


@pytest.mark.parametrize("tab", [{"java_script_enabled": False}], indirect=True)
def test_without_javascript_everything_is_there(tab):
    assert tab.locator("svg.chart").count() >= 10
    assert tab.locator("h2").first.inner_text() == "Findings"


def test_a_video_plays_offline(tab):
    playing = "async () => { const v = document.querySelector('video'); await v.play(); return v.videoWidth; }"
    assert tab.evaluate(playing) == 64
