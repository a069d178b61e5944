"""The order in which the guest loads its kernel modules."""

from __future__ import annotations

import pytest

from remuslike.image.errors import PackageContentError
from remuslike.image.modules import load_order, module_name, parse_built_in

DEPENDS = {
    "virtio_blk": ("virtio", "virtio_ring"),
    "virtio": ("virtio_ring",),
    "virtio_ring": (),
    "virtio_net": ("virtio_ring", "virtio", "net_failover"),
    "net_failover": ("failover",),
    "failover": (),
    "chicken": ("egg",),
    "egg": ("chicken",),
    "orphan": ("gone",),
}


def test_each_module_comes_after_what_it_needs() -> None:
    order = load_order(["virtio_blk", "virtio_net"], DEPENDS, frozenset())
    assert order == ("virtio_ring", "virtio", "virtio_blk", "failover", "net_failover", "virtio_net")


def test_built_in_modules_are_not_loaded() -> None:
    assert load_order(["ext4", "virtio_blk"], DEPENDS, frozenset({"ext4", "virtio_ring"})) == (
        "virtio",
        "virtio_blk",
    )


def test_modules_that_need_each_other_are_refused() -> None:
    with pytest.raises(PackageContentError, match="chicken -> egg -> chicken"):
        load_order(["chicken"], DEPENDS, frozenset())


@pytest.mark.parametrize(
    ("wanted", "message"), [("gone", "no module gone, which the recipe"), ("orphan", "gone, which orphan")]
)
def test_a_missing_module_is_named_with_who_needs_it(wanted: str, message: str) -> None:
    with pytest.raises(PackageContentError, match=message):
        load_order([wanted], DEPENDS, frozenset())


def test_names_of_files_and_modules() -> None:
    assert module_name("virtio-rng.ko") == "virtio_rng"
    assert parse_built_in("kernel/fs/ext4/ext4.ko\nkernel/lib/crc-t10dif.ko\n") == {"ext4", "crc_t10dif"}
