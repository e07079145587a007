"""What harnesses hand over, read: generation arguments, budgets, conversations."""

import logging

import pytest
from PIL import Image

from vila_jax.adapters.conversations import conversation, user_turn
from vila_jax.adapters.decoding import Decoding
from vila_jax.adapters.loading import batch_rows, budget_text, load
from vila_jax.errors import ConfigError, PromptError

RED, BLUE = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, Decoding(32)),
        ({"max_new_tokens": 16, "until": "\n\n"}, Decoding(16, stop=("\n\n",))),
        ({"max_gen_toks": 5, "max_new_tokens": 9, "until": ["a", "", "b"]}, Decoding(5, stop=("a", "b"))),
        ({"temperature": 0.2, "do_sample": False, "top_p": 0}, Decoding(32)),
        ({"temperature": 0.2}, Decoding(32, 0.2)),
        ({"temperature": 0, "do_sample": True}, Decoding(32)),
        ({"do_sample": True, "top_k": 3, "top_p": 0.5}, Decoding(32, 1.0, 3, 0.5)),
        ({"num_beams": 1, "repetition_penalty": None, "temperature": None, "until": []}, Decoding(32)),
    ],
)
def test_generation_arguments(arguments, expected):
    assert Decoding.of(arguments, 32) == expected


@pytest.mark.parametrize("arguments", [{"num_beams": 5}, {"repetition_penalty": 1.2}])
def test_what_there_is_not_is_refused(arguments):
    with pytest.raises(ConfigError, match="is not supported"):
        Decoding.of(arguments, 32)


def test_what_means_nothing_is_said_once(caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            Decoding.of({"image_aspect_ratio": "original"}, 32)
    assert [record.message for record in caplog.records].count(caplog.records[0].message) == 1
    assert "image_aspect_ratio" in caplog.text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        ("None", None),
        (64, "hired:64"),
        (0.2, "hired:0.2"),
        ("hired:0.2", "hired:0.2"),
        ("hired:115;alpha=0.3+fastv:0.5;layer=2", "hired:115,alpha=0.3+fastv:0.5,layer=2"),
    ],
)
def test_budgets(given, expected):
    assert budget_text(given) == expected


def test_unknown_arguments_are_named_before_a_model_is_loaded():
    with pytest.raises(ConfigError, match=r"alpha.*write ; in place"):
        load("/nowhere", "hired:115", alpha=0.3)


@pytest.mark.parametrize("rows", ["auto", 0, "-1"])
def test_batches_have_a_number_of_rows(rows):
    assert batch_rows("8") == 8
    with pytest.raises(ConfigError, match="batch_size"):
        batch_rows(rows)


def content(context, visuals):
    [turn], images = conversation(user_turn(context, visuals), "<picture>")
    return turn["content"], images


def test_pictures_stand_in_front_of_a_text_without_marks():
    parts, images = content("Why?", [RED, "film.mp4", "photo.JPG"])
    assert [part["type"] for part in parts] == ["image", "video", "image", "text"]
    assert parts[0]["image"] is RED
    assert (parts[1]["video"], parts[2]["image"], parts[3]["text"]) == ("film.mp4", "photo.JPG", "Why?")
    assert images == []


@pytest.mark.parametrize("visuals", [None, [], [None]])
def test_text_alone(visuals):
    assert content("Why?", visuals) == ([{"type": "text", "text": "Why?"}], [])


def test_marks_say_where_pictures_stand():
    assert content("A <image> B <image>", [RED, BLUE]) == ("A <picture> B <picture>", [RED, BLUE])


@pytest.mark.parametrize("visuals", [[], [RED], [RED, "film.mp4"]])
def test_marks_without_their_pictures_are_refused(visuals):
    with pytest.raises(PromptError, match="2 <image> marks"):
        content("A <image> B <image>", visuals)


def test_chat_messages_keep_their_order():
    url, text = {"type": "image", "url": RED}, {"type": "text", "text": "Why?"}
    film = {"type": "video", "url": "film.mp4"}
    given = [{"role": "user", "content": [text, url]}, {"role": "assistant", "content": [text]}]
    messages, images = conversation([*given, {"role": "user", "content": [film, text]}], "<image>", num_frames=4)
    assert messages[0]["content"] == [text, {"type": "image", "image": RED}]
    assert messages[2]["content"][0] == {"type": "video", "video": "film.mp4", "num_frames": 4}
    assert images == []


def test_a_system_message_goes_in_front_once():
    messages, _ = conversation(user_turn("Why?", None), "<image>", system="Be brief.")
    assert [message["role"] for message in messages] == ["system", "user"]
    assert conversation(messages, "<image>", system="Be long.")[0] == messages


def test_sound_is_refused():
    with pytest.raises(PromptError, match="audio given as str"):
        conversation([{"role": "user", "content": [{"type": "audio", "url": "a.wav"}]}], "<image>")
    with pytest.raises(PromptError, match="neither a picture nor"):
        user_turn("What is heard?", [{"array": [0.0], "sampling_rate": 16000}])
