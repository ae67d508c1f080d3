"""A whole run that several tests of training compare with."""

import pytest

from tests.train.runs import fit, validation


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The working directory and the result of a validated run in one go."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, fit(workdir=workdir, validation=validation())
