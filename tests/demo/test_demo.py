"""The page of `being-vl demo`: what it shows, and, where gradio and a browser are there, that it shows it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from checkpoint_fixtures import CODEBOOK_SIZE, NUM_MERGES, image_bpe, tiny_checkpoint
from PIL import Image

from being_vl.demo.tokens import LABELS, MIN_SIDE, first_merges, view_tokens
from being_vl.hub.checkpoint import save_checkpoint

_ROOT = Path(__file__).parents[2]
_CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


def test_first_merges_are_the_vocabulary_on_its_way() -> None:
    bpe = image_bpe()
    codes = np.zeros((4, 4), int)
    counts = [len(first_merges(bpe, n).encode(codes)) for n in (0, NUM_MERGES // 2, NUM_MERGES)]
    assert counts == [16, 8, 4]
    assert first_merges(bpe, 3).merges.tolist() == bpe.merges[:3].tolist()


def test_areas_cover_the_picture_once_and_tell_the_size_of_tokens() -> None:
    codes = np.zeros((4, 6), int)
    codes[:, 4:] = CODEBOOK_SIZE - 1  # no merge has this code
    picture = Image.new("RGB", (24, 16), "white")
    view = view_tokens(image_bpe(), codes, NUM_MERGES, picture)
    assert (view.num_codes, view.num_tokens) == (24, 12)
    assert min(view.image.size) >= MIN_SIDE and view.image.size == (576, 384)
    covered = np.sum([mask for mask, _ in view.areas], axis=0)
    assert covered.shape == (384, 576) and (covered == 1).all()
    masks = {label: mask for mask, label in view.areas}
    assert set(masks) == {"1 code", "3–4"} and set(masks) <= set(LABELS)
    assert masks["1 code"][:, 384:].all() and not masks["1 code"][:, :384].any()
    plain = view_tokens(image_bpe(), codes, 0, picture)
    assert plain.num_tokens == 24 and [label for _, label in plain.areas] == ["1 code"]
    with pytest.raises(ValueError, match=r"num_merges must be in \[0, 12\], got 13"):
        view_tokens(image_bpe(), codes, 13, picture)


def test_without_gradio_it_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['gradio'] = None\nfrom being_vl.cli import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "demo", str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
    )
    assert done.returncode == 2
    assert (
        done.stderr.strip()
        == 'being-vl demo: error: the demo needs gradio: pip install "being-vl[demo]"'
    )


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[str]:
    """The address of a page that `being-vl demo` serves, of a checkpoint that was never trained."""
    pytest.importorskip("gradio", reason="the demo's page needs the extra being-vl[demo]")
    folder = tmp_path_factory.mktemp("demo")
    save_checkpoint(*tiny_checkpoint("llama-3"), folder / "checkpoint")
    pixels = np.kron(np.arange(4).reshape(2, 2) * 60, np.ones((20, 20))).astype(np.uint8)
    Image.fromarray(pixels).convert("RGB").save(folder / "image.png")
    server = subprocess.Popen(
        [sys.executable, "-m", "being_vl", "demo", "checkpoint", "--max-new-tokens", "5"],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(_ROOT),
            "HF_HUB_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        seen = []
        for line in server.stdout:
            seen.append(line)
            if match := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            pytest.fail("".join(seen[-20:]))
        yield f"{match[0]} {folder / 'image.png'}"
    finally:
        server.kill()
        server.wait()


def test_page_in_a_browser(served: str, tmp_path: Path) -> None:
    """An image becomes tokens, the slider changes them, the chat answers, and nothing calls home."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    if _CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    address, image = served.split(" ", 1)
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        asked, failures = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.goto(address)
        page.set_input_files("input[type=file] >> nth=0", image)
        numbers = page.locator("#numbers")
        numbers.get_by_text("codes a token").wait_for(timeout=60_000)
        whole = numbers.inner_text()
        assert whole.startswith("16 codes, ")
        # Twice the image: the codes' reconstruction, and the tokens over it.
        page.locator("img").nth(2).wait_for()
        slider = page.get_by_role("spinbutton", name=re.compile("Merges"))
        slider.fill("0")
        slider.press("Enter")
        page.keyboard.press("Tab")
        numbers.get_by_text("16 tokens, 1.00 codes a token").wait_for(timeout=30_000)
        page.screenshot(path=str(tmp_path / "tokens.png"))
        page.get_by_role("tab", name="Chat").click()
        page.get_by_placeholder("Ask; attach an image").fill("What is it?")
        page.keyboard.press("Enter")
        page.locator(".bot.message, .message.bot").first.wait_for(timeout=60_000)
        page.screenshot(path=str(tmp_path / "chat.png"))
        browser.close()
    assert not failures
    elsewhere = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert not elsewhere, elsewhere


def test_page_as_an_interface(served: str) -> None:
    """The same without a browser, through gradio's own client."""
    client_module = pytest.importorskip("gradio_client")
    address, image = served.split(" ", 1)
    client = client_module.Client(address, verbose=False)
    names = {name for name in client.view_api(return_format="dict")["named_endpoints"]}
    assert {"/look", "/answer"} <= names
    for _ in range(2):
        result = client.predict(client_module.handle_file(image), 12, api_name="/look")
        assert "codes a token" in result[-1]
        time.sleep(0.1)
