"""The documentation: keys have sentences, generated pages are current, links lead somewhere, the README is short."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from rcdeploy.recipe import SECTIONS, Recipe

ROOT = Path(__file__).resolve().parent.parent
KEYS = [(name, key, field) for name, section in SECTIONS.items() for key, field in section.model_fields.items()]
KEYS.append(("recipe", "name", Recipe.model_fields["name"]))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "runtime").glob("*.md")])
MAX_README_LINES = 120


def load_script(name):
    """A script of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


build = load_script("build")


@pytest.mark.parametrize(("section", "key", "field"), KEYS, ids=[f"{section}.{key}" for section, key, _ in KEYS])
def test_every_recipe_key_has_a_sentence(section, key, field):
    assert field.description and len(field.description.split()) > 2, f"{section}.{key} has no description"


def test_generated_pages_are_current():
    generate = load_script("generate")
    for path, text in generate.pages().items():
        name = path.relative_to(ROOT)
        assert path.is_file() and path.read_text("utf-8") == text, f"{name}: run `python docs/generate.py`"


def test_the_reference_has_every_command_with_its_options():
    text = (ROOT / "docs/reference/commands.md").read_text("utf-8")
    for command in ("distill", "export", "evaluate", "recipes check", "prompts build", "prompts unseen"):
        assert f"\n## rcdeploy {command}\n" in text
    assert "`--json`" in text and "--as-json" not in text


@pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES])
def test_commands_in_the_docs_exist_with_their_options(page):
    reference = (ROOT / "docs/reference/commands.md").read_text("utf-8")
    sections = {part.split("\n", 1)[0]: part for part in reference.split("\n## ")[1:]}
    for command in commands(page):
        words = command.split()
        names = [" ".join(words[:count]) for count in (3, 2)]
        name = next((name for name in names if name in sections), None)
        if name is None:
            assert any(section.startswith(f"{names[1]} ") for section in sections), f"there is no command `{command}`"
            continue
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", command):
            assert option == "--help" or re.search(rf"{option}[`, /]", sections[name]), f"{command}: no {option}"


def commands(page):
    """The rcdeploy commands in the code of a page: fenced, indented or inline."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    code = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.S | re.M)
    code += re.findall(r"^    (.*)$", text, flags=re.M) + re.findall(r"`([^`]+)`", text)
    lines = [line.partition("#")[0].strip() for block in code for line in re.split(r"[\n;]", block)]
    return [line for line in lines if re.match(r"rcdeploy [a-z]", line)]


@pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES])
def test_every_link_leads_to_a_file_and_a_heading(page):
    for path, anchor in links(page):
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{path} is missing"
        if anchor:
            assert anchor in anchors(target), f"{path} has no heading #{anchor}"


def links(page):
    """(path, anchor) of every link of a page that stays in the repository; code is left out."""
    prose = re.sub(r"^```.*?^```|^    .*?$|`[^`\n]+`", "", page.read_text("utf-8"), flags=re.S | re.M)
    targets = [match[2] for match in build.LINK.finditer(prose)]
    return [target.partition("#")[::2] for target in targets if "://" not in target]


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "zensical.toml").read_text("utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert f'"{page.relative_to(ROOT / "docs").as_posix()}"' in navigation


def test_the_readme_is_short_and_its_table_is_the_measured_one():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= MAX_README_LINES
    assert table_of(ROOT / "results/unseen_concepts.md") in text
    result = (ROOT / "results/unseen_concepts.md").read_text("utf-8")
    assert result in (ROOT / "docs/science/unseen-concepts.md").read_text("utf-8")
    assert table_of(ROOT / "results/first_weights.md") in (ROOT / "docs/science/first-weights.md").read_text("utf-8")


def test_figures_of_the_miniature_tables_are_those_in_results():
    page = (ROOT / "docs/science/tables.md").read_text("utf-8")
    results = " ".join(file.read_text("utf-8") for file in (ROOT / "results").glob("*.md"))
    rows = [line for line in page.splitlines() if line.startswith("|")]
    figures = {figure for row in rows for figure in re.findall(r"\d+\.\d+", row)} - {"0.5", "0.7", "0.4", "12.5"}
    missing = {figure for figure in figures if figure not in results}
    assert not missing


def table_of(file):
    return "\n".join(line for line in file.read_text("utf-8").splitlines() if line.startswith("|"))


def test_gathered_pages_link_only_to_gathered_files(tmp_path):
    build.gather(tmp_path)
    for page in tmp_path.rglob("*.md"):
        for path, _ in links(page):
            assert not path or (page.parent / path).is_file(), f"{page.relative_to(tmp_path)}: {path}"


def test_the_page_that_draws_in_a_tab_is_linked_where_it_was_built(tmp_path):
    build.gather(tmp_path)
    page = tmp_path / "guide/browser.md"
    assert build.DEMO_LINK not in page.read_text("utf-8")
    build.link_demo(tmp_path)
    assert build.DEMO_LINK in page.read_text("utf-8")


def test_a_broken_link_and_a_foreign_script_are_found(tmp_path):
    (tmp_path / "index.html").write_text(
        '<h1 id="top">x</h1><a href="#top">a</a><a href="#low">b</a><a href="gone.html">c</a>'
        '<a href="https://example.org/">d</a><script src="https://example.org/x.js"></script>'
    )
    assert sorted(build.site_errors(tmp_path)) == [
        "index.html links to #low, which has no such anchor",
        "index.html links to gone.html, which is missing",
        "index.html loads https://example.org/x.js",
    ]


def test_the_citation_file_names_the_paper():
    text = (ROOT / "CITATION.cff").read_text("utf-8")
    assert "cff-version: 1.2.0" in text
    assert "Random Conditioning with Distillation for Data-Efficient Diffusion Model Compression" in text


def test_the_compatibility_page_has_the_answers_kept():
    compatibility = load_script("compatibility")
    assert compatibility.page() == compatibility.PAGE.read_text("utf-8"), "run `python docs/compatibility.py --rows`"
    answers = compatibility.read_answers()
    assert answers.keys() <= set(compatibility.COLUMNS)
    assert set().union(*answers.values()) <= {row.name for row in compatibility.ROWS}
