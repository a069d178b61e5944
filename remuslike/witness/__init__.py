"""Witnesses: the third party that decides which side may open output alone (DESIGN.md, section 7)."""

from remuslike.witness.file import FileWitness
from remuslike.witness.none import NoWitness

__all__ = ["FileWitness", "NoWitness"]
