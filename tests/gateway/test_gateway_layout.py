"""The gateway's core names no transport, and protocols lie below it."""

import grimp
import pytest

TRANSPORTS = {"grpc", "aiohttp", "tritonclient", "hpack"}


@pytest.mark.parametrize("module", ["core", "classify", "health", "errors"])
def test_the_core_imports_no_protocol(module):
    graph = grimp.build_graph("erlab", cache_dir=None, include_external_packages=True)
    own = {name for name in graph.modules if name.startswith("erlab.gateway.")}
    reached = graph.find_upstream_modules(f"erlab.gateway.{module}") & own | {f"erlab.gateway.{module}"}
    assert not {name for name in reached if name.startswith("erlab.gateway.wire")}
    for name in reached:
        assert not graph.find_modules_directly_imported_by(name) & TRANSPORTS, name
