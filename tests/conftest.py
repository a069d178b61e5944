"""Puts this directory on the import path, so that every test finds `fakes`, and sends tests marked `lab` into
the kernel lab (see `lab`)."""

from __future__ import annotations

import os

import pytest
from lab.inside import Reporter
from lab.remote import Remote, replace_lab_items

from remuslike.lab.lab import Lab

IN_THE_LAB = os.environ.get("REMUSLIKE_LAB") == "1"

DEAD_HOSTS = 16

REMOTE = pytest.StashKey[Remote]()
LAB_NODES = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--dead-hosts", type=int, default=DEAD_HOSTS, help="how many test_dhcp kills in turn")


def pytest_configure(config: pytest.Config) -> None:
    if IN_THE_LAB:
        config.pluginmanager.register(Reporter(config))
    else:
        config.stash[REMOTE] = Remote()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Last, so that what -k and -m leave out isn't asked for in the lab either."""
    if not IN_THE_LAB:
        config.stash[LAB_NODES] = replace_lab_items(items, config.stash[REMOTE])


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """The tests in the lab begin with the first one outside."""
    nodes = session.config.stash.get(LAB_NODES, [])
    if nodes and not session.config.option.collectonly and not session.testsfailed:
        session.config.stash[REMOTE].begin(nodes)


def pytest_unconfigure(config: pytest.Config) -> None:
    if not IN_THE_LAB and REMOTE in config.stash:
        config.stash[REMOTE].close()


@pytest.fixture
def lab(pytestconfig: pytest.Config) -> Lab:
    """The kernel lab of this run, for commands of a test's own. The test itself runs outside."""
    return pytestconfig.stash[REMOTE].lab()
