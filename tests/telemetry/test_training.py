"""Which recording belongs to which attempt of a run."""

from types import SimpleNamespace

from brickreel.telemetry import training
from telemetry.logs import attempt


def seen(log, *spans):
    run = SimpleNamespace(attempts=log, steps={})
    found = training.attempts_of(run, [SimpleNamespace(span_s=span) for span in spans])
    return [(one.start_s, one.end_s) for one in found]


def test_an_attempt_lasts_as_long_as_the_recordings_that_saw_it_begin():
    log = attempt(0, 100.0, 200.0) + attempt(1, 260.0, None)
    nodes = [(70.0, 201.0), (75.0, 202.0)]
    assert seen(log, *nodes, (220.0, 300.0), (221.0, 290.0)) == [(70, 202), (220, 300)]


def test_a_recording_after_the_beginning_belongs_to_the_attempt_before_it():
    assert seen(attempt(0, 100.0, None), (104.0, 180.0)) == [(100, 180)]


def test_a_recording_of_an_attempt_that_never_began_is_nobodys():
    assert seen(attempt(0, 100.0, 120.0), (10.0, 60.0)) == [(100, 120)]
