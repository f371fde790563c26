"""The report: self-contained, verdict first, whatever a model wrote shown as text."""

import json
import re
import shutil

import pytest

from domain_tokens.comparison.report import response_segments
from domain_tokens.runs.files import write_json
from tests.conftest import call, rewrite_items

HOSTILE = (
    "<script>document.title = 'taken'</script><img src=x onerror=alert(1)> مرحبا 6*9 "
    + "x" * 10_000
)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def compare(demo, *more, arms=("eval_baseline", "eval_mul_tokens")):
    words = ["--baseline-dir", demo / arms[0], "--mul-tokens-dir", demo / arms[1]]
    page = demo / "report.html"
    assert call("scripts/compare_runs.py", *words, "--report", page, *more) == 0
    return page


def give_answer(folder, number, response, *, spans=()):
    """Let an item of an evaluation be right, with a response of our choice."""

    def change(at, item):
        if at != number:
            return {}
        # A heading is no answer, so that the last line is the one that is read.
        words = f"{response}\n#### {item['gold']}"
        counts = dict.fromkeys(("mul_tokens", "mul_tokens_valid", "reserved_tokens"), len(spans))
        return {"response": words, "fact_spans": [list(span) for span in spans], **counts}

    rewrite_items(folder, change)


@pytest.fixture
def hostile(demo):
    give_answer(demo / "eval_baseline", 0, HOSTILE)
    give_answer(demo / "eval_mul_tokens", 1, "It is <MUL_6_9_54>, not <MUL_1_1_1>", spans=[(6, 18)])
    return compare(demo)


def test_the_page_holds_everything_and_asks_for_nothing(demo):
    text = compare(demo).read_text()
    assert text.count("<svg") > 5
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)""", text)
    assert text.index('id="verdict"') < text.index('id="endpoints"')
    told = json.loads((demo / "comparison.json").read_text())["verdicts"]
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", text))
    for verdict in told:
        assert verdict.partition(": ")[2] in words.replace("&#39;", "'").replace("&gt;", ">")
    for command in (
        "scripts/make_base.py",
        "sft/sft_tulu.py",
        "sft/sft_gsm8k.py",
        "eval/run_gsm8k",
    ):
        assert f"uv run python {command}" in text


def test_ids_of_the_figures_do_not_clash(demo):
    ids = re.findall(r' id="([^"]+)"', compare(demo).read_text())
    assert len(ids) == len(set(ids))


def test_model_text_is_escaped_and_facts_are_known_by_id(hostile):
    text = hostile.read_text()
    assert "<script>document" not in text
    assert "&lt;script&gt;document" in text
    assert "<mark>&lt;MUL_6_9_54&gt;</mark>" in text
    assert "<mark>&lt;MUL_1_1_1&gt;</mark>" not in text


def test_segments_cover_the_response():
    item = {"response": "a<F>b<G>", "fact_spans": [[1, 4], [5, 8]]}
    assert response_segments(item) == [(False, "a"), (True, "<F>"), (False, "b"), (True, "<G>")]
    assert response_segments({"response": ""}) == []


def test_a_study_whose_training_folders_are_gone_is_still_reported(demo):
    for file in demo.glob("eval_*/*_results.json"):
        tree = json.loads(file.read_text())
        tree["card"]["model_path"] = tree["metrics"]["model_path"] = "outputs/moved"
        tree["card"]["parent"]["path"] = "outputs/moved"
        write_json(file, tree)
    text = compare(demo).read_text()
    assert "no curves" in text
    assert 'id="verdict"' in text


@pytest.fixture(scope="module")
def chromium():
    if CHROMIUM is None:
        pytest.skip("no Chromium here; Debian's package is called chromium")
    from playwright.sync_api import sync_playwright

    quiet = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(quiet))
        yield browser
        browser.close()


def visit(browser, file, *, width, scheme="light"):
    """Open a page; whatever it complains of ends in page.complaints."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
    )
    page = context.new_page()
    page.complaints = []
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("dialog", lambda dialog: page.complaints.append(dialog.message))
    page.goto(file.as_uri())
    return page


@pytest.mark.browser
def test_items_are_filtered(chromium, hostile):
    page = visit(chromium, hostile, width=1200)
    everything = page.locator("article:visible").count()
    page.select_option("#evaluation", "gsm8k")
    assert page.locator("article:visible").count() == 2 < everything
    page.select_option("#which", "mul_tokens")
    assert page.locator("article:visible").count() == 1
    assert "1 shown" in page.inner_text("#count")
    assert page.inner_text("article:visible mark") == "<MUL_6_9_54>"
    page.select_option("#which", "")
    page.fill("#words", "no such words")
    assert page.locator("article:visible").count() == 0
    page.fill("#words", "مرحبا")
    assert page.locator("article:visible").count() == 1
    assert page.complaints == []


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1200])
def test_a_hostile_response_shows_as_text_and_breaks_no_layout(chromium, hostile, width):
    """A commit is a word of 40 characters: of wide ones it was broader than a telephone, so that
    this test failed with the commit that it ran on."""
    text, count = re.subn("<p>Commit [^ ;]+", "<p>Commit " + 40 * "d", hostile.read_text())
    assert count == 1
    hostile.write_text(text)
    page = visit(chromium, hostile, width=width)
    assert page.title().startswith("Fact tokens")
    assert HOSTILE[:60] in page.inner_text("article >> nth=0")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.complaints == []


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_their_paper(chromium, hostile, scheme):
    """WCAG 2 asks for a contrast of 4.5 to 1."""
    page = visit(chromium, hostile, width=1200, scheme=scheme)
    light = """(value) => { const c = document.createElement("canvas").getContext("2d");
      c.fillStyle = value; c.fillRect(0, 0, 1, 1);
      const part = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
      const [r, g, b] = [...c.getImageData(0, 0, 1, 1).data].map(part);
      return 0.2126 * r + 0.7152 * g + 0.0722 * b; }"""
    style = "(name) => getComputedStyle(document.documentElement).getPropertyValue(name)"
    paper = page.evaluate(light, page.evaluate(style, "--paper"))
    for name in ("--ink", "--faint", "--baseline", "--mul"):
        ink = page.evaluate(light, page.evaluate(style, name))
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 4.5, name
