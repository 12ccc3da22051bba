"""The page, in a real browser."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install 'mrc-edit[dev]'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
]
PHOTO = Path(__file__).parents[2] / "demo" / "chelsea.jpg"
expect = sync_api.expect


@pytest.fixture(scope="module")
def chromium():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, server, key):
    """`opened(**context)`: the page, with the key; at the end it has asked no other host and has had no error."""
    pages, others, errors = [], [], []

    def make(**context):
        page = chromium.new_page(**context)
        pages.append(page)
        page.set_default_timeout(60_000)
        page.on("request", lambda asked: others.append(asked.url) if not asked.url.startswith(allowed) else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if "Content Security" in line.text else None)
        page.goto(server.url)
        page.get_by_label("API key").fill(key)
        page.get_by_label("API key").press("Tab")
        expect(page.get_by_role("status")).to_have_text("The key is right.")
        return page

    allowed = (server.url, "blob:", "data:")
    yield make
    for page in pages:
        page.close()
    assert not others and not errors


def choose(page, prompt="make it sepia", **settings):
    page.get_by_label("Choose an image").set_input_files(PHOTO)
    page.get_by_label("What to change").fill(prompt)
    for label, value in settings.items():
        page.get_by_label(label, exact=True).fill(str(value))


def done(page, seed):
    expect(page.get_by_role("status")).to_have_text(f"Done. Seed {seed}.", timeout=60_000)


def test_without_keys_the_page_edits_and_a_sandboxed_frame_does_not(chromium, start_server, picture):
    """The page says where it comes from; a frame that hides it is refused, though it could read no answer."""
    server = start_server(keys=None)
    page = chromium.new_page()
    page.goto(server.url)
    choose(page, prompt="make the giraffe sepia", Seed=7, Steps=1)
    page.get_by_role("button", name="Edit").click()
    done(page, 7)
    expect(page.locator("#warnings")).to_contain_text("not learned giraffe")
    status = 'mrc_requests_total{route="/v1/images/edits",status="%s"}'
    assert server.metric(status % 200) == 1
    page.close()
    page = chromium.new_page()
    page.set_content(f"""<iframe sandbox="allow-scripts" srcdoc="<script>
        const form = new FormData();
        form.append('prompt', 'make it sepia');
        form.append('image', new Blob([new Uint8Array({list(picture)})]));
        fetch('{server.url}/v1/images/edits', {{method: 'POST', mode: 'no-cors', body: form}});
    </script>"></iframe>""")
    server.until(status % 403, 1)
    page.close()


def test_an_edit_by_keyboard(opened, mini, tmp_path):
    """Rewards, seed and tier go along; the download is the edit; arrow keys move the divider."""
    page = opened()
    choose(page, Seed=7)
    page.get_by_label("keeping the rest").press("ArrowLeft")
    expect(page.locator("output[for=preserving]")).to_have_text("4.5")
    page.get_by_label("Tier").select_option("fast")
    page.get_by_label("What to change").press("Control+Enter")
    done(page, 7)
    divider = page.get_by_label("Divider between before and after")
    divider.press("ArrowRight")
    assert page.locator("#halves").evaluate("element => element.style.getPropertyValue('--cut')") == "51%"
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    download.value.save_as(tmp_path / "edit.png")
    tier = type(mini).from_pretrained("mini", tier="fast")
    expected = tier.edit(PHOTO, "make it sepia", seed=7, reward_scores=(5, 4.5, 5)).images[0]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "edit.png")), np.asarray(expected))
    sizes = page.locator("#halves").evaluate(
        "e => [...e.querySelectorAll('img')].map(i => [i.naturalWidth, i.naturalHeight])"
    )
    assert sizes[0] == sizes[1] == list(expected.size)


def test_history_and_the_mouse(opened):
    page = opened()
    choose(page, Seed=1)
    for seed in (1, 2):
        page.get_by_label("Seed", exact=True).fill(str(seed))
        page.get_by_role("button", name="Edit").click()
        done(page, seed)
    expect(page.locator("#history button")).to_have_count(2)
    page.get_by_role("button", name="make it sepia, seed 1").click()
    expect(page.locator("#caption")).to_have_text("make it sepia · seed 1")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("1")
    box = page.locator("#halves").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.25, box["y"] + box["height"] / 2)
    cut = page.locator("#halves").evaluate("element => element.style.getPropertyValue('--cut')")
    assert 22 <= float(cut.rstrip("%")) <= 28


def test_stop(opened, server):
    """The server stops within a step, too; what the stream told of the steps is shown meanwhile."""
    page = opened()
    choose(page, Steps=1000)
    before = server.metric("mrc_steps_total")
    page.get_by_role("button", name="Edit").click()
    expect(page.get_by_role("status")).to_have_text(re.compile("Step .* of 1000"), timeout=60_000)
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("status")).to_have_text("Stopped.")
    server.until("mrc_running", 0)
    assert server.metric("mrc_steps_total") - before < 1000
    expect(page.get_by_role("button", name="Edit")).to_be_enabled()


def test_partial_images_and_errors(opened):
    page = opened()
    choose(page, Steps=200)
    page.get_by_role("button", name="Edit").click()
    expect(page.locator("#caption")).to_have_text("On the way …", timeout=60_000)
    page.get_by_role("button", name="Stop").click()
    page.get_by_label("Steps", exact=True).fill("")
    page.get_by_label("Seed", exact=True).fill("99999999999999999999")
    page.get_by_role("button", name="Edit").click()
    expect(page.get_by_role("status")).to_have_text(re.compile("^seed: "))
    expect(page.get_by_role("status")).to_have_class("wrong")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen(opened, scheme):
    """No sideways scrolling, and text that can be read in both schemes."""
    page = opened(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    choose(page, prompt="make it sepia " * 20, Seed=3)
    page.get_by_role("button", name="Edit").click()
    done(page, 3)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    ground, text = (page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
    light, dark = sorted((luminance(ground), luminance(text)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 7 and (luminance(ground) < 0.1) == (scheme == "dark")


def luminance(colour):
    """Relative luminance of rgb(r, g, b), as in WCAG 2."""
    channels = np.array([int(value) for value in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
