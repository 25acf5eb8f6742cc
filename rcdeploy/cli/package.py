"""rcdeploy package"""

from __future__ import annotations

import typer

from .console import print_json, print_line
from .options import JSON

app = typer.Typer(help="Facts of a package.", no_args_is_help=True)


@app.callback()
def _package() -> None:
    """Facts of a package."""


@app.command("digest")
def digest_command(
    package: str = typer.Argument(help="A package (folder or .zip) that rcdeploy export wrote.", show_default=False),
    as_json: bool = JSON,
) -> None:
    """Print a package's digest, after comparing every file of it with the manifest.

    TextToImage.load(PACKAGE, digest="sha256:...") loads that very package and refuses any other, as a lock file pins a
    wheel. The digest is that of manifest.json, which has the digest of every file that is loaded; writing the model
    card again does not change it.
    """
    from rcdeploy_runtime.package import Package

    digest = Package(package).digest
    if as_json:
        print_json({"package": package, "digest": digest})
    else:
        print_line(digest)
