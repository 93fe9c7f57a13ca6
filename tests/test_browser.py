"""In a real browser: notebooks opened and run in JupyterLab, a widget moved there and in Notebook 7 (where it is
installed), the report read on a desk and a phone."""

import importlib.util
import re
import shutil

import browser
import nbformat
import pytest

import erlab
from erlab import paths

pytestmark = [
    pytest.mark.skipif(bool(browser.unavailable()), reason=f"no browser: {browser.unavailable()}"),
    pytest.mark.timeout(900),
]
STUDY = sorted(paths.NOTEBOOKS.glob("[0-9]*.ipynb"))
LONG = [n for n in STUDY if n.name[:2] in ("02", "06", "08", "09")]  # they train, draw or simulate all anew
SHORT = [n for n in STUDY if n not in LONG]
DRAWN = """() => {
    const pictures = [...document.querySelectorAll(".jp-OutputArea-output img")];
    return pictures.length > 0 && pictures.every(img => img.complete && img.naturalWidth > 0);
}"""


@pytest.fixture(scope="module")
def chromium():
    with browser.chromium() as found:
        yield found


@pytest.fixture(scope="module")
def jupyterlab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    with browser.jupyter(folder) as address:
        yield folder / "notebooks", address


@pytest.fixture
def lab(jupyterlab, page):
    """The folder that JupyterLab serves, and its address; the kernels started there end after the test."""
    yield jupyterlab
    browser.end_kernels(page, jupyterlab[1])


@pytest.fixture
def page(chromium, tmp_path):
    """A page that keeps what its console complains of in `page.complaints`, and a last screenshot in `tmp_path`."""
    page = chromium.new_page(viewport={"width": 1400, "height": 1000})
    page.complaints = []
    page.on("console", lambda message: page.complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    yield page
    page.screenshot(path=tmp_path / "last.png")
    page.close()


def test_a_widget_moves_and_the_picture_changes(lab, page, tmp_path):
    move_a_widget(*lab, page, tmp_path)
    assert not page.complaints, page.complaints


@pytest.mark.skipif(not importlib.util.find_spec("notebook"), reason="no Notebook 7 (pip install notebook)")
def test_a_widget_moves_in_notebook_7(page, tmp_path):
    with browser.jupyter(tmp_path / "server", "notebook") as address:
        move_a_widget(tmp_path / "server" / "notebooks", address, page, tmp_path)


def move_a_widget(folder, address, page, tmp_path):
    """Run explore there, choose another system, then one that cannot be served and back."""
    values = {"results": str(tmp_path), "users": 50, "steps": "roofline"}
    browser.place(paths.NOTEBOOKS / "explore.ipynb", folder, values)
    browser.run_all(page, address.format("explore.ipynb"))
    assert not browser.errors(page)
    image = page.locator("img.widget-image")
    image.scroll_into_view_if_needed()
    page.screenshot(path=tmp_path / "before.png")
    before, drawn = image.get_attribute("src"), image.screenshot()

    def choose(label: str, value: str) -> None:  # of the solid line, whose controls come first
        page.locator(".widget-dropdown", has_text=label).first.locator("select").select_option(label=value)

    choose("System", "A: Llama 3 70B FP8, TP 4, 2 replicas")
    page.wait_for_function("src => document.querySelector('img.widget-image').src !== src", arg=before)
    after = image.get_attribute("src")
    assert image.evaluate("img => img.complete && img.naturalWidth > 600") and image.screenshot() != drawn
    page.screenshot(path=tmp_path / "after.png")
    choose("GPUs per engine", "1")
    choose("Precision", "FP16")
    page.get_by_text("Llama 3 70B FP16 does not fit 1 H100").wait_for()
    choose("Precision", "paper's")
    choose("GPUs per engine", "paper's")
    page.wait_for_function("src => document.querySelector('img.widget-image').src !== src", arg=after)
    assert not browser.errors(page)


def test_a_notebook_that_fails_is_seen_to_fail(lab, page):
    folder, address = lab
    browser.place(paths.NOTEBOOKS / "explore.ipynb", folder, {"system": "Z"})
    browser.run_all(page, address.format("explore.ipynb"))
    (shown,) = browser.errors(page)
    assert "The 'system' parameter of a setting must be one of A, B, C, D, E. Got 'Z'." in shown


def test_the_completer_lists_what_there_is_to_explore(lab, page, tmp_path):
    folder, address = lab
    cells = [nbformat.v4.new_code_cell("import erlab"), nbformat.v4.new_code_cell("erlab.")]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "names.ipynb")
    browser.open_notebook(page, address.format("names.ipynb"))
    page.locator(".jp-CodeCell .cm-content").first.click()
    page.keyboard.press("Shift+Enter")
    page.locator(".jp-CodeCell .jp-InputPrompt", has_text="[1]").wait_for()
    page.locator(".jp-CodeCell .cm-content").nth(1).click()
    page.keyboard.press("End")
    page.keyboard.press("Tab")
    page.locator(".jp-Completer-item").first.wait_for()
    page.screenshot(path=tmp_path / "names.png")
    assert sorted(page.locator(".jp-Completer-item .jp-Completer-match").all_inner_texts()) == dir(erlab)


@pytest.fixture(scope="module")
def values(study, tmp_path_factory):
    """Parameters that point to a copy of the finished study, where what was measured is not measured again."""
    folder = tmp_path_factory.mktemp("opened") / "study"
    shutil.copytree(study, folder)
    return {"profile": "smoke", "results": str(folder), "figures": str(folder / "figures")}


@pytest.mark.parametrize("notebook", SHORT, ids=lambda n: n.stem)
def test_a_notebook_runs_by_hand(lab, page, values, notebook):
    folder, address = lab
    browser.place(notebook, folder, values)
    browser.run_all(page, address.format(notebook.name))
    assert not browser.errors(page) and not page.complaints, page.complaints


@pytest.mark.parametrize("notebook", LONG, ids=lambda n: n.stem)
def test_an_executed_notebook_shows_its_pictures(lab, page, study, notebook):
    folder, address = lab
    shutil.copy(study / "notebooks" / notebook.name, folder)
    browser.open_notebook(page, address.format(notebook.name))
    page.wait_for_function(DRAWN)
    assert not browser.errors(page) and not page.complaints, page.complaints


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390], ids=["desk", "phone"])
def test_the_report_can_be_read(study, page, width, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 844})
    page.goto((study / "report.html").as_uri())
    assert not page.complaints, page.complaints
    missing = page.eval_on_selector_all("img", "all => all.filter(i => !(i.complete && i.naturalWidth)).map(i => i.alt)")
    assert page.locator("img").count() >= 7 and not missing, missing
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "it must not be scrolled sideways"
    colours = page.evaluate("(({color, backgroundColor}) => [color, backgroundColor])(getComputedStyle(document.body))")
    text, ground = map(luminance, colours)
    assert (ground < text) == (scheme == "dark")
    assert (max(text, ground) + 0.05) / (min(text, ground) + 0.05) >= 7, "WCAG's contrast for text, level AAA"


def luminance(colour: str) -> float:
    """WCAG's relative luminance of a browser's ``rgb(r, g, b)``: 0 black, 1 white."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear))
