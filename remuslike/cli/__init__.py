"""The `remuslike` command: parsing and wiring only."""

from remuslike.cli.main import main

__all__ = ["main"]
