"""What a benchmark writes down of where it ran."""

from __future__ import annotations

import platform
from importlib.metadata import version

from remuslike.bench.environment import cpu_model, first_line, package_versions, record_environment


def test_the_environment_is_this_machines() -> None:
    found = record_environment()
    assert platform.release() in found.kernel
    assert found.python == platform.python_version()
    assert found.packages["trio"] == version("trio")
    assert found.packages.keys() >= {"remuslike", "pyroute2", "numpy"}
    assert found.processors >= 1
    assert found.memory_mib > 100
    assert found.tools.keys() == {"qemu", "iperf3", "fio", "nbdkit"}


def test_the_first_processor_names_the_model() -> None:
    cpuinfo = "processor\t: 0\nmodel name\t: QEMU TCG CPU version 2.5+\n\nmodel name\t: other\n"
    assert cpu_model(cpuinfo) == "QEMU TCG CPU version 2.5+"
    assert cpu_model("processor: 0") == "unknown"


def test_packages_for_tests_only_and_missing_ones_are_left_out() -> None:
    found = package_versions(["trio>=0.27", "no-such-package>=1", 'pytest>=8; extra == "test"'])
    assert found.keys() == {"remuslike", "trio"}


def test_a_tool_that_is_missing_or_fails_has_no_version() -> None:
    assert first_line(["echo", "tool 1.2\nmore"]) == "tool 1.2"
    assert first_line(["no-such-tool"]) is None
    assert first_line(["false"]) is None
    assert first_line(["true"]) is None
