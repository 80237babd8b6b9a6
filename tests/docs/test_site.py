"""The site of the documentation builds without a warning, and its first page leads to its contents."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    site = tmp_path / "site"
    words = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs"]
    done = subprocess.run(
        [*words, "-d", str(tmp_path / "trees"), ".", str(site)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first = re.search(r"url=([^\"]+)", (site / "index.html").read_text(encoding="utf-8"))
    assert first is not None
    contents = (site / first.group(1)).read_text(encoding="utf-8")
    for page in [*ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/*.md")]:
        rendered = page.relative_to(ROOT).with_suffix(".html")
        assert (site / rendered).exists(), rendered
        assert rendered.name in contents, f"{rendered} is in no table of contents"
