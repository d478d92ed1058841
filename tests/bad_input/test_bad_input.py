"""Bad input, systematically: every public function and facade method refuses it by name, or does what it says.

`python -m tests.bad_input` runs as many cases as it is told to, of other seeds.
"""

import inspect

import pytest

import jaxsmooth
from tests.bad_input.cases import run_cases
from tests.bad_input.harness import Subject
from tests.bad_input.subjects import classes, core

CORE = core()
SUBJECTS = [(subject, 32) for subject in CORE] + [(subject, 16) for subject in classes()]


@pytest.mark.parametrize(("subject", "number"), SUBJECTS, ids=[subject.name for subject, _ in SUBJECTS])
def test_bad_input_is_refused_by_name_and_changes_nothing(subject, number):
    found = run_cases(subject, number, derandomize=True)
    assert found.total() >= min(number, 8)


def test_there_are_two_thousand_cases():
    assert sum(number for _, number in SUBJECTS) >= 2000


def test_every_function_of_the_core_says_what_holds_of_an_odd_argument_that_is_accepted():
    nothing = Subject("", print, dict, {}).holds
    assert [subject.name for subject in CORE if subject.holds is nothing] == []


def test_every_public_function_is_among_the_subjects():
    tried = {subject.name for subject in CORE}
    public = {name for name in jaxsmooth.__all__ if inspect.isfunction(getattr(jaxsmooth, name))}
    assert public <= tried | {"class_gradients"}  # tried with `smooth`, which makes what it takes
