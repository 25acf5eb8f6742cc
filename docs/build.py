"""The documentation as a site: pages and what they link to are gathered, Zensical builds them, every link is checked.

    python docs/build.py               # writes build/docs (what Zensical reads) and build/site; needs no network

Links in docs/ point at files of the repository, so that they work in any checkout. Those that leave docs/ (results,
recipes, examples) are taken along below `repository/`: Markdown as a page, pictures as they are, other text as a page
with its code. The page that `make web` builds is copied to demo/.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
DEMO = ROOT / "web/build/demo"
DEMO_LINK = '<p><a href="../demo/index.html">Draw in this tab</a>: 19 MB, once.</p>'
"""in place of a comment in guide/browser.md, where `make web` has built the page"""
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)(\))")
AS_THEY_ARE = {".png", ".svg", ".jpg", ".css"}
LANGUAGES = {".py": "python", ".toml": "toml", ".json": "json", ".cff": "yaml"}
LOADED = {("link", "href"), ("script", "src"), ("img", "src"), ("source", "src"), ("iframe", "src")}


def gather(to: Path) -> None:
    """Writes to `to` every page of docs/ and everything in the repository that they link to."""
    shutil.rmtree(to, ignore_errors=True)
    waiting = sorted([*DOCS.rglob("*.md"), *DOCS.rglob("*.css")])
    known: set[Path] = set()
    while waiting:
        file = waiting.pop()
        if file in known:
            continue
        known.add(file)
        target = to / place(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix in AS_THEY_ARE:
            shutil.copyfile(file, target)
        elif file.suffix == ".md":
            text, linked = relinked(file)
            target.write_text(text, encoding="utf-8")
            waiting += linked
        else:
            language = LANGUAGES.get(file.suffix, "text")
            code = file.read_text(encoding="utf-8")
            name = file.relative_to(ROOT).as_posix()
            target.write_text(f"# {name}\n\n````{language}\n{code}````\n", encoding="utf-8")


def place(file: Path) -> Path:
    """Where a file of the repository lies below the site's pages."""
    if file.is_relative_to(DOCS):
        return file.relative_to(DOCS)
    path = Path("repository") / file.relative_to(ROOT)
    if path.name == "README.md":
        return path.with_name("about.md")
    return path if path.suffix in {".md", *AS_THEY_ARE} else path.with_name(path.name + ".md")


def relinked(file: Path) -> tuple[str, list[Path]]:
    """A page with its links as the site needs them, and the files that it links to."""
    linked: list[Path] = []

    def moved(match: re.Match[str]) -> str:
        path, _, anchor = match[2].partition("#")
        if not path or urlsplit(path).scheme:
            return match[0]
        target = (file.parent / unquote(path)).resolve()
        if not target.is_file() or not target.is_relative_to(ROOT):
            raise SystemExit(f"{file.relative_to(ROOT)}: {path} is not a file of the repository")
        linked.append(target)
        new = Path(os.path.relpath(DOCS / place(target), DOCS / place(file).parent)).as_posix()
        return match[1] + new + (f"#{anchor}" if anchor else "") + match[3]

    parts = re.split(r"(^```.*?^```|`[^`\n]+`)", file.read_text(encoding="utf-8"), flags=re.S | re.M)
    text = "".join(part if part.startswith("`") else LINK.sub(moved, part) for part in parts)
    return re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S), linked


class Page(HTMLParser):
    """The links, the files it loads and the anchors of one HTML page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if value is None:
                continue
            if key in ("id", "name"):
                self.anchors.add(value)
            elif (tag, key) in LOADED and not (tag == "link" and ("rel", "canonical") in attrs):
                self.loads.append(value)
            elif tag == "a" and key == "href":
                self.links.append(value)


def site_errors(site: Path) -> Iterator[str]:
    """A sentence for every link that leads nowhere, and for every file that would be loaded from the network."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}
    for path, page in pages.items():
        name = path.relative_to(site).as_posix()
        yield from (f"{name} loads {url}" for url in page.loads if urlsplit(url).netloc)
        for url in page.links + page.loads:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                yield f"{name} links to {url}, which is missing"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                yield f"{name} links to {url}, which has no such anchor"


def link_demo(pages: Path) -> None:
    """Links the page that draws in a tab from the guide's page about it."""
    page = pages / "guide/browser.md"
    page.write_text(page.read_text(encoding="utf-8").replace("<!-- demo -->", DEMO_LINK), encoding="utf-8")


def main() -> None:
    gather(ROOT / "build/docs")
    if DEMO.is_dir():
        link_demo(ROOT / "build/docs")
    shutil.rmtree(ROOT / "build/site", ignore_errors=True)
    zensical = Path(sys.executable).with_name("zensical")
    subprocess.run([str(zensical), "build", "--strict", "--clean"], cwd=ROOT, check=True)
    if DEMO.is_dir():
        shutil.copytree(DEMO, ROOT / "build/site/demo")
    if errors := sorted(set(site_errors(ROOT / "build/site"))):
        sys.exit("\n".join(errors))
    print("build/site/index.html: every link leads somewhere, nothing is loaded from the network")


if __name__ == "__main__":
    main()
