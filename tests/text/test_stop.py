"""Stop strings are found however the text is cut, and nothing of them is ever given out."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vila_jax.errors import PromptError
from vila_jax.text.stop import StopStrings


def run(stops, pieces):
    matcher, out = StopStrings(stops), ""
    for piece in pieces:
        text, stopped = matcher.push(piece)
        out += text
        if stopped:
            assert matcher.stopped and matcher.push("more") == ("", True)
            return out + matcher.flush(), True
    assert not matcher.stopped
    return out + matcher.flush(), False


def whole(stops, text):
    """The first prefix of the text that ends with a stop string, without that string."""
    for end in range(1, len(text) + 1):
        endings = [stop for stop in stops if text[:end].endswith(stop)]
        if endings:
            return text[: end - max(map(len, endings))], True
    return text, False


@given(
    st.lists(st.text("ab#", min_size=1, max_size=4), max_size=3),
    st.lists(st.text("ab#", max_size=5), max_size=8),
)
@example(["aab"], ["aaa", "b"])
@example(["abc", "b"], ["a", "b", "c"])
@example(["ab#", "b#"], ["ab", "#"])
def test_any_text_in_any_pieces(stops, pieces):
    assert run(stops, pieces) == whole(stops, "".join(pieces))


def test_text_is_held_back_only_while_it_may_stop():
    matcher = StopStrings(["END"])
    assert [matcher.push(piece) for piece in ("an E", "N", "x EN", "D!")] == [
        ("an ", False),
        ("", False),
        ("ENx ", False),
        ("", True),
    ]
    assert matcher.flush() == ""


def test_flush_gives_what_was_held():
    matcher = StopStrings(["END"])
    assert matcher.push("the EN") == ("the ", False)
    assert matcher.flush() == "EN" and matcher.flush() == ""


def test_no_stops_and_a_single_string():
    assert run([], ["a", "b"]) == ("ab", False)
    assert run("ab", ["xa", "by"]) == ("x", True)


@pytest.mark.parametrize("stops", [[""], ["a", ""], ""])
def test_an_empty_stop_string(stops):
    with pytest.raises(PromptError, match="empty"):
        StopStrings(stops)
