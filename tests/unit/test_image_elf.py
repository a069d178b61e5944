"""The ELF reader, over files made up here: whole, cut short, and damaged."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_fakes import executable, header, module

from remuslike.image.elf import (
    DYNAMIC_LIMIT,
    DynamicLinks,
    ModuleInformation,
    dynamic_links,
    is_elf,
    module_information,
)
from remuslike.image.errors import PackageContentError

EXECUTABLE = executable([(1, 1), (1, 11), (29, 21)], b"\0libc.so.6\0libz.so.1\0$ORIGIN/../lib:/opt\0")
MODULE = module(b"license=GPL\0depends=virtio,virtio_ring\0name=virtio_blk\0parm=a=b\0")


def test_needed_libraries_search_path_and_loader() -> None:
    assert dynamic_links(EXECUTABLE, "program") == DynamicLinks(
        needed=("libc.so.6", "libz.so.1"),
        search_path=("$ORIGIN/../lib", "/opt"),
        interpreter="/lib64/ld.so",
    )


def test_a_static_program_needs_nothing() -> None:
    assert dynamic_links(header(), "static") == DynamicLinks()


def test_a_module_says_what_it_needs() -> None:
    assert module_information(MODULE, "virtio_blk.ko") == ModuleInformation(
        "virtio_blk", ("virtio", "virtio_ring")
    )
    assert module_information(module(b"depends=\0name=x\0"), "x.ko").depends == ()


def test_a_script_is_no_elf_file() -> None:
    assert not is_elf(b"#!/bin/sh\n")
    with pytest.raises(PackageContentError, match="script is no ELF file"):
        dynamic_links(b"#!/bin/sh\n", "script")


def test_a_dynamic_section_without_end_is_refused() -> None:
    data = executable([(30, 0)] * (DYNAMIC_LIMIT + 1), b"\0")
    with pytest.raises(PackageContentError, match=str(DYNAMIC_LIMIT)):
        dynamic_links(data, "endless")


def test_a_module_without_information_is_refused() -> None:
    with pytest.raises(PackageContentError, match="no section names"):
        module_information(header(), "empty.ko")


@pytest.mark.parametrize("length", range(0, len(MODULE), 7))
def test_a_module_that_is_cut_short_is_refused(length: int) -> None:
    with pytest.raises(PackageContentError, match=r"cut\.ko"):
        module_information(MODULE[:length], "cut.ko")


@pytest.mark.parametrize("data", [EXECUTABLE, MODULE])
@settings(derandomize=True, max_examples=500)
@given(st.data())
def test_damage_ends_in_the_named_error_or_in_an_answer(data: bytes, choices: st.DataObject) -> None:
    damaged = bytearray(data)
    for _ in range(choices.draw(st.integers(1, 4))):
        damaged[choices.draw(st.integers(6, len(data) - 1))] = choices.draw(st.integers(0, 255))
    for read in (dynamic_links, module_information):
        try:
            read(bytes(damaged), "damaged")
        except PackageContentError as error:
            assert "damaged" in str(error)
