"""The pictures of the README and the tutorial: pages of datasets, photographed by headless Chromium.

python -m scripts.pictures        # writes docs/*.png; needs the extra `browser`
"""

import contextlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"


def main() -> None:
    """Photograph the page of the sample, wide and light, narrow and dark, and the rows of the tutorial's sentence."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), sync_playwright() as driver:
        subprocess.run([sys.executable, "-m", "pipeline", "window.stride=128"], check=True)
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, width, height, scheme in (("report", 1120, 1180, "light"), ("report-phone", 390, 860, "dark")):
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto((Path(folder) / "outputs/sample/report.html").as_uri())
            if scheme == "dark":
                page.evaluate("document.getElementById('h-use').scrollIntoView()")
            page.screenshot(path=DOCS / f"{name}.png")
        Path("rato.txt").write_text("O rato roeu a roupa do rei de Roma", "utf-8")
        pairs = "corpus=text corpus.paths=[rato.txt] tokenizer=words window=prefix embedding=none name=rato"
        subprocess.run([sys.executable, "-m", "pipeline", *pairs.split()], check=True)
        page = browser.new_page(viewport={"width": 760, "height": 800})
        page.goto((Path(folder) / "outputs/rato/report.html").as_uri())
        page.locator("section:has(#h-windows)").screenshot(path=DOCS / "pairs.png")
        browser.close()


if __name__ == "__main__":
    main()
