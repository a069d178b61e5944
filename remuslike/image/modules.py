"""In which order kernel modules are to be loaded. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from remuslike.image.errors import PackageContentError


def load_order(
    wanted: Iterable[str], depends: Mapping[str, tuple[str, ...]], built_in: frozenset[str]
) -> tuple[str, ...]:
    """`wanted` and all that they need, each after what it needs; modules built into the kernel are left out.

    Raises PackageContentError for a module that is in neither, and for modules that need each other.
    """
    order: dict[str, None] = {}
    under_way: list[str] = []

    def visit(name: str) -> None:
        if name in order or name in built_in:
            return
        if name in under_way:
            raise PackageContentError(f"kernel modules need each other: {' -> '.join([*under_way, name])}")
        if name not in depends:
            needed_by = under_way[-1] if under_way else "the recipe"
            raise PackageContentError(f"the kernel package has no module {name}, which {needed_by} needs")
        under_way.append(name)
        for needed in depends[name]:
            visit(needed)
        under_way.pop()
        order[name] = None

    for name in wanted:
        visit(name)
    return tuple(order)


def module_name(file_name: str) -> str:
    """The name by which modules know each other; the file's may have hyphens (virtio-rng.ko)."""
    return file_name.partition(".")[0].replace("-", "_")


def parse_built_in(text: str) -> frozenset[str]:
    """Names out of the kernel package's `modules.builtin`, one path per line."""
    return frozenset(module_name(line.rpartition("/")[2]) for line in text.splitlines() if line)
