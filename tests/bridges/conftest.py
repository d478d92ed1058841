"""Every framework, for the tests that all of them pass."""

import pytest

from tests.bridges.frameworks import FRAMEWORKS


@pytest.fixture(params=FRAMEWORKS, ids=lambda framework: framework.name)
def framework(request):
    return request.param
