"""Every relative link and anchor resolves for readers of the repository. mkdocs checks the links of the website."""

import re
import unicodedata
from pathlib import Path

import pytest

from tests.conftest import ROOT

NAMES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"]
PAGES = [*(ROOT / name for name in NAMES), *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def links(page: Path) -> list[str]:
    text = CODE.sub("", FENCE.sub("", page.read_text()))
    return [link for link in LINK.findall(text) if "://" not in link and not link.startswith("mailto:")]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and GitLab generate for a page's headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?)\s*$", FENCE.sub("", page.read_text()), re.MULTILINE):
        words = unicodedata.normalize("NFC", re.sub(r"[^\w\- ]", "", heading.lower()))
        base = anchor = words.replace(" ", "-")
        repeats = 0
        while anchor in found:
            repeats += 1
            anchor = f"{base}-{repeats}"
        found.add(anchor)
    return found


def broken(page: Path) -> list[str]:
    found = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    assert broken(page) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# What's new?\n```sh\n# no heading\n```\n## Twice\n## Twice\n")
    page.write_text(
        "# A page\n[a](other.md) [b](other.md#whats-new) [c](#a-page) [d](https://example.org/x) `[e](code.md)`\n"
        "[f](missing.md) [g](other.md#no-heading) [h](#b) ![i](missing.svg) [j](other.md#twice-1)\n"
    )
    assert broken(page) == ["missing.md", "other.md#no-heading", "#b", "missing.svg"]


def test_the_readme_links_to_every_page() -> None:
    linked = {link.partition("#")[0] for link in links(ROOT / "README.md")}
    shown = {
        "docs/index.md": "README.md",
        "docs/benchmarks.md": "benchmarks/README.md",
        "docs/contributing.md": "CONTRIBUTING.md",
    }
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert {shown.get(page, page) for page in pages} - {"README.md"} <= linked


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
