"""A server for all tests that only ask it."""

from __future__ import annotations

import pytest

import needs

# Test modules here import the server's packages.
collect_ignore_glob = [] if needs.is_there("serve") else ["test_*.py"]


@pytest.fixture(scope="session")
def served_files(tmp_path_factory):
    from serving import served
    return served.make_files(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def server(served_files):
    from serving import served
    with served.running(served_files) as running:
        yield running
