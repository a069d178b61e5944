"""`remuslike image`: the guest image of the demo and the tests."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from remuslike.image import build_image


@click.group()
def image() -> None:
    """Build a bootable guest out of Debian packages."""


@image.command()
@click.option("--refresh", is_flag=True, help="Look for newer packages first.")
def build(*, refresh: bool) -> None:
    """Build the image, unless it is there, and print where its parts are, as JSON."""
    built = build_image(progress=lambda message: click.echo(message, err=True), refresh=refresh)
    click.echo(json.dumps({key: str(value) for key, value in asdict(built).items()}))
