"""The pictures of the README: the page of the sample, photographed by headless Chromium.

python -m scripts.pictures        # writes docs/report.png and docs/report-phone.png; needs the extra `browser`
"""

import contextlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"


def main() -> None:
    """Prepare the sample in an empty folder and photograph its page: wide and light, narrow and dark."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), sync_playwright() as driver:
        subprocess.run([sys.executable, "-m", "pipeline", "window.stride=128"], check=True)
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, width, height, scheme in (("report", 1120, 1180, "light"), ("report-phone", 390, 1180, "dark")):
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto((Path(folder) / "outputs/sample/report.html").as_uri())
            if scheme == "dark":
                page.evaluate("document.getElementById('h-use').scrollIntoView()")
            page.screenshot(path=DOCS / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
