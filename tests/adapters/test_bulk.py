"""Many requests at once: the answers of each alone, in the order asked, with few programs."""

import threading

import numpy as np
import pytest
from PIL import Image

from vila_jax.adapters.bulk import Bulk
from vila_jax.adapters.decoding import Decoding
from vila_jax.errors import ContextLengthError, ImageError, PromptError
from vila_jax.infer.layout import Request

GREEDY = Decoding(4)


def picture(seed: int, height: int = 48, width: int = 48) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(small).resize((width, height))


def maker(model, text: str, *pictures: Image.Image):
    return lambda: model.request("<image>\n" * len(pictures) + text, pictures)


@pytest.fixture(scope="module")
def makers(model):
    """Of several shapes, mixed: text alone, one picture, a wide one, two."""
    long = "what color is the circle at the top left ? " * 6
    return [
        maker(model, "what is this ?", picture(0)),
        maker(model, long),
        maker(model, "how many ?", picture(1, 48, 110)),
        maker(model, "which word ?"),
        maker(model, long, picture(2)),
        maker(model, "a or b ?", picture(3), picture(4)),
        maker(model, "what color ?", picture(5)),
    ]


def alone(model, make, decoding, seed=0):
    answers = model.answers_to(
        [make()],
        max_new_tokens=decoding.max_new_tokens,
        temperature=decoding.temperature,
        stop=decoding.stop,
        seed=seed,
    )
    for _ in answers:
        pass
    return answers.results()[0]


@pytest.mark.parametrize("rows", [1, 3])
def test_every_answer_is_that_of_the_request_alone(model, makers, rows):
    decodings = [GREEDY if i % 2 else Decoding(6, 1.0) for i in range(len(makers))]
    done = []
    answers = Bulk(model, rows).generate(makers, decodings, seed=5, on_done=done.append)
    expected = [alone(model, m, d, seed=5 + i) for i, (m, d) in enumerate(zip(makers, decodings, strict=True))]
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in expected]
    assert [answer.usage for answer in answers] == [answer.usage for answer in expected]
    assert sum(done) == len(makers)


def test_programs_are_compiled_once_for_all_rounds(model, count_compilations):
    def ask(first: int) -> None:
        asked = [maker(model, f"what {'is ' * (i % 3)} this ?", picture(first + i)) for i in range(5)]
        Bulk(model, 2).generate(asked, [GREEDY] * 5)

    ask(100)
    with count_compilations() as count:
        ask(200)
    assert count() == 0


def test_requests_are_prepared_in_another_thread(model, makers):
    threads = []

    def make():
        threads.append(threading.current_thread())
        return makers[0]()

    Bulk(model, 2).generate([make] * 3, [GREEDY] * 3)
    assert len(set(threads)) == 1
    assert threads[0] is not threading.current_thread()


def test_one_that_cannot_be_read_fails_alone(model, makers):
    def broken():
        raise ImageError("it is cut off", where="picture")

    limit = model.config.context_length
    long = lambda: Request([5] * (limit + 1))  # noqa: E731
    answers = Bulk(model, 2).generate([broken, makers[0], long], [GREEDY] * 3)
    assert isinstance(answers[0], ImageError)
    assert answers[1].token_ids == alone(model, makers[0], GREEDY).token_ids
    assert isinstance(answers[2], ContextLengthError)
    with pytest.raises(ImageError, match="cut off"):
        Bulk(model, 2).generate([broken] * 2, [GREEDY] * 2)


def test_errors_of_the_task_are_not_swallowed(model, makers):
    def broken():
        raise KeyError("question")

    with pytest.raises(KeyError, match="question"):
        Bulk(model, 2).generate([makers[0], broken], [GREEDY] * 2)


def test_an_answer_ends_where_the_context_does(model):
    room = 3
    prompt = Request([5] * (model.config.context_length - room))
    [answer] = Bulk(model, 2).generate([lambda: prompt], [Decoding(1000)])
    assert len(answer.token_ids) <= room


def test_answers_that_the_context_ends_share_batches(model, monkeypatch):
    batches = []

    def answers_to(requests, *, max_new_tokens, **options):
        batches.append((len(requests), max_new_tokens))
        return type(model).answers_to(model, requests, max_new_tokens=1, **options)

    monkeypatch.setattr(model, "answers_to", answers_to)
    prompts = [Request([5] * (model.config.context_length - room)) for room in (64, 65, 100, 127, 128)]
    Bulk(model, 4).generate([lambda prompt=prompt: prompt for prompt in prompts], [Decoding(1024)] * 5)
    assert sorted(batches) == [(4, 64), (4, 128)]


def test_likelihoods_come_in_the_order_asked(model, makers):
    requests = [make() for make in makers]
    contexts = [requests[i] for i in (0, 1, 0, 3, 1, 0)]
    continuations = [[20], [21, 22, 23], [21], [24, 25], [22], [20, 21]]
    found = Bulk(model, 2).log_likelihoods(contexts, continuations)
    for request, ids, one in zip(contexts, continuations, found, strict=True):
        logits = model.engine.logits(Request([*request.token_ids, *ids], request.media), budget=None)
        rows = logits[-len(ids) - 1 : -1]
        expected = (rows - np.logaddexp.reduce(rows, axis=1, keepdims=True))[np.arange(len(ids)), ids]
        np.testing.assert_allclose(one.log_probs, expected, atol=1e-4)
    with pytest.raises(PromptError, match="empty"):
        Bulk(model, 2).log_likelihoods(contexts[:1], [[]])
