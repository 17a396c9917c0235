"""A headless browser, and what a page says about itself when it has been opened in one."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any


def browse(chromium: str, page: Path, *options: str, fragment: str = "") -> subprocess.CompletedProcess[str]:
    """Open a page in a profile of its own, beside it."""
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    return subprocess.run(
        [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            *quiet,
            "--enable-logging=stderr",
            f"--user-data-dir={page.parent / 'profile'}",
            *options,
            f"file://{page}{fragment}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def probed(chromium: str, page: Path, script: str, *, size: str, fragment: str = "") -> dict[str, Any]:
    """What ``script`` (the body of a function) returns at the end of a copy of the page; nothing may be logged."""
    answer = f"document.body.dataset.probe = JSON.stringify((() => {{{script}}})());"
    probe = f"<script>addEventListener('load', () => {{{answer}}});</script>"
    copy = page.with_name("probed.html")
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", probe + "</body>"), encoding="utf-8")
    done = browse(chromium, copy, "--dump-dom", f"--window-size={size}", fragment=fragment)
    assert "CONSOLE" not in done.stderr, done.stderr
    found = re.findall(r'data-probe="([^"]*)"', done.stdout)
    return json.loads(found[-1].replace("&quot;", '"').replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
