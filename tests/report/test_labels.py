"""Names beside dots: none covers another or a dot, and where all must be named, all are."""

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp.report.labels import overlap, place_names

ROOM = (0.0, 0.0, 1000.0, 500.0)
dots = st.lists(st.tuples(st.integers(20, 980), st.integers(20, 480)), min_size=1, max_size=12, unique=True)


def boxes(places, widths, height):
    return [
        (place.left, place.middle - height / 2, place.left + width, place.middle + height / 2)
        for place, width in zip(places, widths)
        if place is not None
    ]


@settings(max_examples=40, deadline=None)
@given(dots, st.booleans())
def test_names_cover_nothing(found, every):
    widths = [60.0] * len(found)
    placed = boxes(place_names(found, widths, 12, ROOM, every=every), widths, 12)
    marks = [(x - 4.0, y - 4.0, x + 4.0, y + 4.0) for x, y in found]
    assert not any(overlap(one, other) for one, other in combinations(placed, 2))
    assert not any(overlap(name, mark) for name in placed for mark in marks)
    assert all(left >= 0 and low >= 0 and right <= 1000 and high <= 500 for left, low, right, high in placed)


def test_a_crowd_is_named_to_the_last_dot():
    crowd = [(500.0 + 7 * (k % 6), 250.0 + 7 * (k // 6)) for k in range(36)]
    assert None in place_names(crowd, [80.0] * 36, 12, ROOM)
    assert None not in place_names(crowd, [80.0] * 36, 12, ROOM, every=True)
