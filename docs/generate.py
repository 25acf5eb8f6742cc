"""Generated pages of the documentation: recipe keys, commands, and the files of the repository.

    python docs/generate.py            # writes docs/reference/*.md and docs/contributing/tree.md
    python docs/generate.py --check    # exits with 1 when one of them is out of date

The pages are committed, so that they can be read in the repository without building the site; tests/test_docs.py checks
that they are current.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union

import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rcdeploy.cli.main import app
from rcdeploy.recipe import SECTIONS, Recipe
from rcdeploy.recipe_section import MAX_SEED

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- Written by docs/generate.py: edit the code, then run `make docs`. -->\n"
SECTION_TITLES = {
    "teacher": "The model to distil from.",
    "student": "The architecture of the student and its first weights.",
    "prompts": "The texts: those with a cached latent, and those that are used as text only.",
    "cache": "The latent cache: x_0 latents of the paired prompts.",
    "conditioning": "Random conditioning: equation 3, then the null condition.",
    "loss": "Weights of the losses.",
    "train": "Optimisation, precision, checkpoints.",
    "evaluate": "Evaluation during training, and the defaults of `rcdeploy evaluate`.",
    "distill": "What the student learns beyond the paper's target.",
    "few_steps": "The stage after distillation that makes a few steps enough. Without this section there is none.",
    "decoder": "A tiny decoder in place of the VAE's. Without this section the package has the VAE's.",
    "export": "The package that `rcdeploy build` ends with.",
}
BOUNDS = {
    "gt": "above",
    "ge": "at least",
    "lt": "below",
    "le": "at most",
    "min_length": "length at least",
    "max_length": "length at most",
}
TREE = {
    "rcdeploy": "The workstation: recipes, students, distillation, evaluation (torch)",
    "export/rcdeploy_export": "Export to packages",
    "runtime/rcdeploy_runtime": "The runtime: packages, samplers, sessions (no torch; its own distribution)",
    "web/src": "The runtime of browsers (TypeScript; its own package)",
    "recipes": "Recipes and sweep files",
    "examples": "The embedded teacher, and studies with it",
    "campaign": "Faults and hostile inputs, many and seeded (not in the wheel)",
    "benchmarks": "Timings beside other programs",
    "docs": "This documentation",
    "tests": "Tests",
}


def pages() -> dict[Path, str]:
    """The text of every generated page, by its path."""
    return {
        ROOT / "docs/reference/recipe.md": recipe_page(),
        ROOT / "docs/reference/commands.md": commands_page(),
        ROOT / "docs/contributing/tree.md": tree_page(),
    }


def recipe_page() -> str:
    lines = [
        NOTE,
        "# Recipe keys\n",
        "A recipe is a TOML file. Unknown keys, contradictions and missing files are reported together, before anything"
        " heavy is imported: `rcdeploy recipes check FILE`. `--set section.key=value` overrides a key on the command"
        " line. Paths start at the recipe's folder. Unless a key says otherwise, defaults follow the paper, whose"
        " section or table is given in brackets; *BK-SDM* marks a value that the paper takes over from BK-SDM, and"
        " *authors' code* one that stands only in the authors' code.\n",
        *_key("name", Recipe.model_fields["name"]),
    ]
    for name, section in SECTIONS.items():
        lines += [f"\n## [{name}]\n", SECTION_TITLES[name] + "\n"]
        for key, field in section.model_fields.items():
            lines += _key(key, field)
    return "\n".join(lines) + "\n"


def _key(key: str, field: FieldInfo) -> list[str]:
    facts = [_type(field), *_bounds(field)]
    if field.is_required() and key != "name":
        facts.append("required")
    elif field.default is None:
        facts.append("not set by default")
    elif field.default is not PydanticUndefined:
        facts.append(f"default `{_toml(field.default)}`")
    return [f"- **`{key}`** ({', '.join(facts)}): {_sentence(field.description or '')}"]


def _type(field: FieldInfo) -> str:
    names = {str: "text", int: "integer", float: "number", bool: "true or false"}
    annotation: Any = field.annotation
    if typing.get_origin(annotation) in (Union, types.UnionType):
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    if typing.get_origin(annotation) is list:
        inner = typing.get_args(annotation)[0]
        bare = typing.get_args(inner)[0] if hasattr(inner, "__metadata__") else inner
        plain: dict[Any, str] = {str: "text", int: "integers"}
        return f"list of {plain.get(bare) or _literal(inner)}"
    if typing.get_origin(annotation) is Literal:
        return _literal(annotation)
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _literal(annotation: Any) -> str:
    values = [f"`{_toml(value)}`" for value in typing.get_args(annotation)]
    return ", ".join(values[:-1]) + f" or {values[-1]}"


def _bounds(field: FieldInfo) -> list[str]:
    limits = [
        f"{word} {_bound(getattr(item, key))}"
        for item in field.metadata
        for key, word in BOUNDS.items()
        if getattr(item, key, None) is not None
    ]
    return [" and ".join(limits)] if limits else []


def _bound(value: float) -> str:
    """1,000,000 and 0.5; the largest seed as a power of two."""
    if value == MAX_SEED:
        return "2^63 - 1"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else f"{value:_}" if isinstance(value, int) else f"{value:g}"


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "?", "!")) else text + "."


def commands_page() -> str:
    lines = [
        NOTE,
        "# Commands\n",
        "Every command takes `--help`. Exit codes: 0 done, 1 a defect of rcdeploy, 2 something that you can put right"
        " (one panel says what), 130 stopped by hand.\n",
    ]
    for name, function in _commands(app, "rcdeploy"):
        lines += [f"\n## {name}\n", *_docstring(function)]
        arguments, options = _parameters(function)
        usage = " ".join([name, *(["[OPTIONS]"] if options else []), *(argument for argument, _ in arguments)])
        lines += [f"```text\n{usage}\n```\n"]
        lines += [f"- `{argument}`: {text}" for argument, text in arguments + options]
    return "\n".join(lines).rstrip() + "\n"


def _commands(group: typer.Typer, prefix: str) -> Iterator[tuple[str, Any]]:
    """Names and functions of all commands of a typer app, with those of its groups."""
    callback = group.registered_callback
    if callback and callback.callback and group.info.invoke_without_command is True:
        yield prefix, callback.callback
    for command in group.registered_commands:
        if not command.hidden and command.callback:
            yield f"{prefix} {command.name or command.callback.__name__.replace('_', '-')}", command.callback
    for inner in group.registered_groups:
        if inner.typer_instance:
            yield from _commands(inner.typer_instance, f"{prefix} {inner.name}")


def _docstring(function: Any) -> list[str]:
    """Paragraphs of a command's help; lines that are commands become code."""
    paragraphs = []
    for block in re.split(r"\n\s*\n", inspect.getdoc(function) or ""):
        rows = [row for row in block.splitlines() if row.strip("\b ")]
        if rows and all(row.strip().startswith(("rcdeploy ", "accelerate ")) for row in rows):
            paragraphs.append("```bash\n" + "\n".join(row.strip() for row in rows) + "\n```\n")
        else:
            paragraphs.append(_escape(" ".join(row.strip() for row in rows)) + "\n")
    return paragraphs


def _parameters(function: Any) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(how it is written, its help) of every argument and of every option."""
    hints = typing.get_type_hints(function, include_extras=True)
    arguments, options = [], []
    for name, parameter in inspect.signature(function).parameters.items():
        hint, info, default = _parameter(hints[name], parameter.default)
        if info is None or info.hidden:
            continue
        help_text = " ".join((info.help or "").split())
        if default not in (None, ..., True, False, "", []) and info.show_default and not callable(default):
            help_text += f" Default: `{default}`."
        many = "..." if typing.get_origin(hint) is list else ""
        if isinstance(info, typer.models.ArgumentInfo):
            written = (info.metavar or name).strip("[]{}.").upper() + many
            arguments.append((written if default is ... else f"[{written}]", _escape(help_text)))
            continue
        flag = bool in (hint, *typing.get_args(hint))
        names = [n for n in (info.default, *(info.param_decls or ())) if isinstance(n, str) and n.startswith("-")]
        if not names:
            bare = name.replace("_", "-")
            names = [f"--{bare}/--no-{bare}" if flag and default is True else f"--{bare}"]
        value = "" if flag else f" {info.metavar or _value(hint)}"
        options.append((", ".join(sorted(names, key=len, reverse=True)) + value, _escape(help_text)))
    return arguments, options


def _parameter(hint: Any, default: Any) -> tuple[Any, Any, Any]:
    """(type, typer's description or None, default) of a parameter, whether it is annotated or has it as its default."""
    infos = (typer.models.OptionInfo, typer.models.ArgumentInfo)
    if typing.get_origin(hint) is typing.Annotated:
        kind, *extras = typing.get_args(hint)
        info = next((extra for extra in extras if isinstance(extra, infos)), None)
        return kind, info, ... if default is inspect.Parameter.empty else default
    return (hint, default, default.default) if isinstance(default, infos) else (hint, None, default)


def _value(hint: Any) -> str:
    inner = [a for a in typing.get_args(hint) if a is not type(None)] or [hint]
    names = {Path: "PATH", str: "TEXT", int: "INTEGER", float: "NUMBER"}
    return names.get(inner[0], "VALUE")


def _escape(text: str) -> str:
    """Text that Markdown shows as it stands: no stray markup or HTML outside of code."""
    parts = text.replace("[bold]", "").replace("[/bold]", "").split("`")
    return "`".join(re.sub(r"([<>*|\[\]])", r"\\\1", part) if i % 2 == 0 else part for i, part in enumerate(parts))


def tree_page() -> str:
    lines = [
        NOTE,
        "# The files\n",
        "Every file with the first line of its own description. Data flows from prompts and teacher to latent cache,"
        " distillation, run, package and runtime; see [how the parts depend on each other](index.md#the-house).\n",
    ]
    for root, title in TREE.items():
        lines += [f"\n## {root}/\n", f"{title}.\n"]
        folder = None
        for file in described_files(ROOT / root):
            if file.parent != folder:
                folder = file.parent
                if folder != ROOT / root:
                    lines.append(f"\n**{folder.relative_to(ROOT).as_posix()}/**\n")
            lines.append(f"- `{file.name}`: {_escape(description(file))}")
    return "\n".join(lines) + "\n"


def described_files(root: Path) -> list[Path]:
    """Python, TypeScript, TOML and Markdown files below `root`, a folder's own files first.

    Empty files, the tests' fixtures and these pages are left out.
    """
    files = [
        f
        for pattern in ("*.py", "*.ts", "*.toml", "*.md")
        for f in root.rglob(pattern)
        if not {"__pycache__", "fixtures"} & {*f.parts}
    ]
    files = [f for f in files if f.read_text(encoding="utf-8").strip() and (f.suffix != ".md" or root.name != "docs")]
    return sorted(files, key=lambda f: (f.parent.relative_to(root).parts, f.name))


def description(file: Path) -> str:
    """The first line of a file's docstring, of its head comment, or its title."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        lines = (ast.get_docstring(ast.parse(text)) or "").splitlines()
    elif file.suffix == ".ts":
        lines = [row.strip("/* ") for row in text.splitlines()[:2] if row.strip("/* ")]
    elif file.suffix == ".md":
        lines = [row.lstrip("# ") for row in text.splitlines() if row.startswith("# ")]
    else:
        lines = [row.lstrip("# ") for row in text.splitlines() if row.startswith("#")]
    if not lines or not lines[0].strip():
        raise SystemExit(f"{file.relative_to(ROOT)}: its first line does not say what it is for")
    return textwrap.dedent(lines[0]).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a page is out of date")
    args = parser.parse_args()
    outdated = [path for path, text in pages().items() if not path.is_file() or path.read_text("utf-8") != text]
    if args.check:
        for path in outdated:
            print(f"{path.relative_to(ROOT)} is out of date: run `python docs/generate.py`")
        sys.exit(bool(outdated))
    for path in outdated:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(pages()[path], encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
