"""The tests of the paper's sentences use the same real processes as tests/integration."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from actors import Nursery
from racks import Yard, me, nursery, private_place, rack, yard
from service_under_test import ServiceUnderTest

__all__ = ["me", "nursery", "private_place", "rack", "yard"]


@pytest.fixture(scope="module")
def whole_service(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceUnderTest]:
    """One for all tests of a module: it takes three racks and six processes, and survives what they do to it."""
    place = tmp_path_factory.mktemp("service")
    runtime = place / "run"
    runtime.mkdir(mode=0o700)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("XDG_RUNTIME_DIR", str(runtime))
        environment.setenv("BEQUEST_RACK", "")  # so that it is put back, whatever connect() makes of it
        environment.delenv("BEQUEST_RACK")
        with contextlib.ExitStack() as rest:  # everything is taken down, whatever fails
            yard = Yard(nursery, runtime)
            rest.callback(yard.close)
            service = ServiceUnderTest(yard, place)
            rest.callback(service.close)
            yield service
