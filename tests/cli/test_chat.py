"""`vila-jax chat`: turns from stdin, and what goes wrong in one of them."""

import io

import pytest

from vila_jax.model import from_pretrained


@pytest.fixture
def talk(vila_jax_cli, llava, monkeypatch):
    """Says lines to the small LLaVA-1.5: code, answers, what was said beside them."""

    def run(*lines, options=()):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        code, out, err = vila_jax_cli("chat", llava, "--max-new-tokens", 5, *options)
        return code, out.splitlines(), err

    return run


def test_turns_are_those_of_a_conversation(talk, llava, photo):
    code, answers, err = talk("hello there", "", "what else", options=("--image", photo, "--budget", "hired:4"))
    chat = from_pretrained(llava, budget="hired:4").chat(max_new_tokens=5)
    expected = [chat.ask("hello there", [photo]).text, chat.ask("what else").text]
    assert (code, "\n".join(answers)) == (0, "\n".join(expected))
    assert err.count("visual 16 → 4") == 2 and "cached" in err


def test_pictures_come_with_the_next_turn_and_new_forgets(talk, photo):
    _, first, _ = talk("hello", options=("--image", photo))
    code, answers, err = talk("what", f"/image {photo}", "/new", f"/image {photo}", "hello", "/quit", "unheard")
    assert code == 0 and answers[-len(first) :] == first
    assert err.count("prompt tokens") == 2


def test_a_turn_that_fails_is_said_and_the_conversation_goes_on(talk):
    code, answers, err = talk("/image /nowhere.png", "/draw", "word " * 600, "hello")
    assert code == 0 and len(answers) >= 1
    assert err.count("error:") == 3 and "/draw" in err and "nowhere.png" in err
