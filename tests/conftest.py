"""What every test begins with."""

import logging

import pytest


@pytest.fixture(autouse=True)
def _logging_as_at_the_start():
    """A command that ran inside this process has set logging up for a terminal: the next test must not notice."""
    logger = logging.getLogger("brickreel")
    logger.setLevel(logging.INFO)
    yield
    logger.handlers.clear()
    logger.propagate = True
