"""The pages in a real browser: Debian's Chromium, headless, driven by Playwright."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import composed
from pipeline import cli
from pipeline.run import run

pytestmark = pytest.mark.slow
CANARY = "<script>window.canary=1</script><img src=//canary.invalid/x onerror=window.canary=2>\x00\x1b[31m\u202e"
SIZES = {"desktop": (1280, 900), "phone": (360, 740)}
CONTRAST = """() => {
  const parse = (c) => { const m = c.match(/[\\d.]+/g).map(Number); return [m[0], m[1], m[2], m.length > 3 ? m[3] : 1]; };
  const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, w, i) => {
    const v = c[i] / 255; return sum + w * (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); }, 0);
  const behind = (e) => { for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor); if (c[3] === 1) return c; } return [255, 255, 255, 1]; };
  const bad = [];
  for (const e of document.querySelectorAll("body *")) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || !e.getClientRects().length) continue;
    const style = getComputedStyle(e), svg = e.closest("svg");
    if (["STYLE", "SCRIPT"].includes(e.tagName) || e.tagName === "title") continue;
    const a = light(parse(svg ? style.fill : style.color)), b = light(behind(svg || e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) bad.push(`${e.tagName}.${e.className.baseVal ?? e.className} ${ratio.toFixed(2)} ${e.textContent.slice(0, 30)}`);
  }
  return bad;
}"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """The page of a split whose text is hostile, that of the sample, that of a sweep, and that of the hostile splits."""
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("evil <b>.txt").write_text("".join(f"the ferry {n} {CANARY} was late\n" for n in range(60)), "utf-8")
        evil = run(composed("output.report=true", "corpus=text", "corpus.paths=['evil <b>.txt']", "corpus.document=line",
                            "name=evil", "tokenizer=words", "window.context_length=16", "split.validation=0.3",
                            "selection.duplicates=none"))  # fmt: skip
        sample = run(composed("output.report=true", "window.stride=128"))
        assert cli.exit_code(["-m", "window.context_length=32,64", "embedding=none", "name=sweep"]) == 0
        names = (evil.folder / "train/report.html", sample.folder / "report.html", "outputs/sweep/sweep.html",
                 evil.folder / "report.html")  # fmt: skip
        yield [folder / name for name in names]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`: Playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    """Open a page of ours; whatever it says to the console or asks of the network is in `said` and `asked`."""
    contexts = []

    def opened(path: Path, size: str = "desktop", scheme: str = "light", scripts: bool = True) -> Any:
        width, height = SIZES[size]
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, java_script_enabled=scripts
        )
        contexts.append(context)
        page = context.new_page()
        page.said, page.asked = [], []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_is_quiet_asks_for_nothing_fits_and_can_be_read(pages, visit, size, scheme):
    for path in pages:
        page = visit(path, size, scheme)
        assert page.said == [] and page.asked == [path.as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
        for element in page.query_selector_all("details"):
            element.evaluate("e => e.open = true")
        assert page.evaluate(CONTRAST) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"


@pytest.mark.parametrize("width", [320, 360, 400, 480, 560, 800, 900, 950, 1400])
def test_the_labels_of_a_chart_have_the_size_of_text_at_every_width(pages, visit, width):
    page = visit(pages[1])
    page.set_viewport_size({"width": width, "height": 900})
    sizes = page.evaluate("""[...document.querySelectorAll(".chart text")].map((text) =>
        parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a)""")
    assert sizes and min(sizes) >= 11 and max(sizes) <= 15.1
    outside = page.evaluate("""[...document.querySelectorAll(".chart text")].filter((text) => {
        const own = text.getBoundingClientRect(), chart = text.closest("svg").getBoundingClientRect();
        return own.width && (own.left < chart.left || own.right > chart.right); }).map((text) => text.textContent)""")
    assert outside == []
    touching = page.evaluate("""[...document.querySelectorAll(".chart .x")].flatMap((axis) => {
        const own = [...axis.querySelectorAll("text")].map((text) => text.getBoundingClientRect()).filter((box) => box.width);
        return own.slice(1).map((box, i) => box.left - own[i].right).filter((gap) => gap < 2); })""")
    assert touching == []


@pytest.mark.row("C23")
def test_hostile_text_stays_text(pages, visit):
    page = visit(pages[0])
    assert page.evaluate("window.canary") is None
    assert page.query_selector("img") is None and page.evaluate("document.scripts.length") == 1
    assert "evil <b>.txt" in page.inner_text("main")


def test_the_theme_follows_the_system_and_then_the_button(pages, visit):
    page = visit(pages[1], scheme="dark")
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(colour)
    page.click("#theme")
    light = page.evaluate(colour)
    assert dark != light
    assert page.evaluate(CONTRAST) == []
    page.click("#theme")
    assert page.evaluate(colour) == dark
    assert visit(pages[1]).evaluate(colour) == light


def test_everything_can_be_reached_by_the_keyboard(pages, visit):
    page = visit(pages[1])
    focused = "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"
    reached = []
    for _ in range(25):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(focused))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or reached[-1] == "BODY", f"{reached[-1]} does not show that it has the focus"
    assert reached[:2] == ["skip", "theme"] and "tokens" in reached and "SUMMARY" in reached
    page.keyboard.press("Shift+Tab")
    page.focus(".tokens")
    assert page.is_hidden("#tip")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#tip").startswith("place 1: ") and page.query_selector_all(".tokens .here")
    page.keyboard.press("Escape")
    assert page.is_hidden("#tip")
    page.focus("summary")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.parentElement.open")


def test_hovering_over_a_token_tells_where_it_stands(pages, visit):
    page = visit(pages[1])
    page.hover(".tokens li >> nth=3")
    assert page.inner_text("#tip").startswith("place 3: ") and "ID" in page.inner_text("#tip")


def test_a_page_can_be_read_without_scripts(pages, visit):
    with_scripts, without = visit(pages[1]), visit(pages[1], scripts=False)
    assert without.is_hidden("#theme") and without.said == []
    for heading in ("Where everything went", "Rows as a model sees them", "Use of the vocabulary", "Stages"):
        assert without.is_visible(f"text={heading}")
    assert len(without.inner_text("main")) > 0.9 * len(with_scripts.inner_text("main"))


def test_a_job_of_a_sweep_is_one_click_away(pages, visit):
    page = visit(pages[2])
    page.click("a[href*='report.html']")
    assert page.said == [] and page.inner_text("h1") == "sweep"


def test_the_jobs_of_a_sweep_are_sorted_by_the_heading_of_a_column(pages, visit):
    page = visit(pages[2])
    column = "[...document.querySelectorAll('tbody tr')].map((row) => row.cells[1].innerText)"
    assert page.evaluate(column) == ["32", "64"]
    page.focus("thead th:nth-child(2) button")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert page.evaluate(column) == ["64", "32"]
    assert page.get_attribute("thead th:nth-child(2)", "aria-sort") == "descending"


def test_the_marks_of_a_chart_are_told_by_the_arrow_keys_and_by_hovering(pages, visit):
    page = visit(pages[1])
    page.focus(".chart")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#tip").startswith("rank 1: ")
    page.hover(".bar rect >> nth=0")
    assert page.inner_text("#tip").startswith("IDs 0 to ")
