"""Cases by hypothesis: a subject, one or two of its arguments, an odd value for each."""

from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.bad_input.harness import Subject, try_odd


def run_cases(subject: Subject, number: int, *, derandomize: bool) -> Counter[str]:
    """Run a number of cases and return how many were refused, the same, or done.

    Raises:
        AssertionError: a case is neither; hypothesis shows the smallest that it finds.
    """
    found: Counter[str] = Counter()

    @settings(
        max_examples=number,
        deadline=None,
        derandomize=derandomize,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def cases(data: st.DataObject) -> None:
        names = data.draw(st.lists(st.sampled_from(sorted(subject.odd)), min_size=1, max_size=2, unique=True))
        chosen = {name: data.draw(st.sampled_from(list(subject.odd[name]))) for name in names}
        found[try_odd(subject, chosen)] += 1

    cases()
    return found
