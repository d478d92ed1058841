"""All that is tried."""

from tests.bad_input import deciding, facades, files, sampling
from tests.bad_input.harness import Subject
from tests.bridges.frameworks import FRAMEWORKS

_CORE = (
    sampling.voting,
    sampling.certifying,
    sampling.enlarging,
    sampling.answering,
    sampling.schedules,
    sampling.checking,
    deciding.deciding,
    deciding.summing_up,
    deciding.noises,
    deciding.training_functions,
    files.whole_data,
    files.reports,
    files.stored_reports,
    files.at_levels,
    files.without_chance,
    files.votes_only,
    files.files,
)


def core() -> list[Subject]:
    """Return the public functions of jaxsmooth."""
    return [subject for make in _CORE for subject in make()]


def classes() -> list[Subject]:
    """Return the methods of every framework's class."""
    return [subject for framework in FRAMEWORKS for subject in facades.methods(framework)]
