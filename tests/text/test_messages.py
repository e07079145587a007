"""Conversations are checked, and their images found."""

import pytest

from vila_jax.errors import PromptError
from vila_jax.text.messages import (
    VideoSource,
    collect_images,
    fill_images,
    flat_text,
    has_videos,
    interleaved_text,
    validate,
    videos_as_images,
)

TEXT = {"type": "text", "text": "hi"}


def user(*parts):
    return {"role": "user", "content": list(parts)}


def image(**source):
    return {"type": "image", **source}


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ("hi", "must be a list of messages, got str"),
        ({"role": "user", "content": "hi"}, "must be a list of messages, got dict"),
        (None, "got NoneType"),
        ([], "holds no message"),
        (["hi"], r"messages\[0\].*keys"),
        ([{"role": "user"}], r"messages\[0\].*keys"),
        ([{"role": "human", "content": "hi"}], r"messages\[0\].*'human'.*system, user, assistant"),
        ([{"role": ["user"], "content": "hi"}], r"unknown role \['user'\]"),
        ([{"role": "user", "content": ""}], "user message is empty"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}], r"messages\[1\].*is empty"),
        ([user()], "has no parts"),
        ([{"role": "user", "content": None}], "got NoneType"),
        ([{"role": "user", "content": TEXT}], "got dict"),
        ([user("hi")], r"content\[0\].*must be a mapping"),
        ([user(TEXT, {"type": "image_url"})], r"messages\[0\].content\[1\].*'image_url'.*image, url, path"),
        ([user({"text": "hi"})], "unknown part type None"),
        ([user({"type": "text"})], 'a string under "text"'),
        ([user({"type": "text", "text": 3})], 'a string under "text"'),
    ],
)
def test_malformed_conversations(messages, complaint):
    for function in (validate, collect_images, lambda m: fill_images(m, [])):
        with pytest.raises(PromptError, match=complaint):
            function(messages)


def test_an_empty_system_message_is_allowed():
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": "hi"}]
    assert validate(tuple(messages)) == messages


def test_images_in_order():
    pixels = object()
    messages = [
        user(image(path="a.png"), TEXT, image(url="http://b", path=None)),
        {"role": "assistant", "content": "an answer"},
        user(image(), image(image=pixels, path="unused"), image(image=None)),
    ]
    assert collect_images(messages) == ["a.png", "http://b", pixels]
    assert fill_images(messages, ["c", "d"]) == ["a.png", "http://b", "c", pixels, "d"]


@pytest.mark.parametrize("images", [[], ["c"], ["c", "d", "e"]])
def test_wrong_number_of_separate_images(images):
    with pytest.raises(PromptError, match=rf"2 image parts.*name no source, and {len(images)} images"):
        fill_images([user(image(), image(path="a.png"), image())], images)


def test_placeholders_inside_texts_take_the_separate_images():
    assert fill_images([{"role": "user", "content": "<image>\nWhat?"}], ["a", "b"]) == ["a", "b"]


def test_flat_text():
    parts = [TEXT, image(path="a"), {"type": "text", "text": "there"}, image()]
    assert flat_text(parts, "<image>\n") == "<image>\n<image>\nhi there"
    assert flat_text("as <image> it is", "<img>") == "as <image> it is"


def video(**source):
    return {"type": "video", **source}


def test_videos_are_marked_among_the_images():
    messages = [user(image(path="a.png"), video(path="b.mp4"), image(), video(), video(video=["c", "d"]), TEXT)]
    assert collect_images(messages) == ["a.png", VideoSource("b.mp4"), VideoSource(["c", "d"])]
    expected = ["a.png", VideoSource("b.mp4"), "e.png", VideoSource("f"), VideoSource(["c", "d"])]
    assert fill_images(messages, ["e.png", "f"]) == fill_images(messages, ["e.png", VideoSource("f")]) == expected


def test_videos_may_say_their_number_of_frames():
    assert collect_images([user(video(path="a", num_frames=16))]) == [VideoSource("a", 16)]
    for wrong in (0, "16", 2.5, True):
        with pytest.raises(PromptError, match=r'messages\[0\].content\[0\]: "num_frames" must be a whole number'):
            collect_images([user(video(path="a", num_frames=wrong))])


def test_videos_become_their_frames():
    messages = [user(video(path="a"), TEXT), {"role": "assistant", "content": "an answer"}, user(TEXT, video())]
    frames = videos_as_images(messages, [2, 1])
    assert frames == [user(image(), image(), TEXT), messages[1], user(TEXT, image())]
    assert has_videos(messages) and not has_videos(frames)
    with pytest.raises(PromptError, match="2 video parts, but 1 videos were given"):
        videos_as_images(messages, [2])


def test_interleaved_text():
    parts = [TEXT, image(path="a"), {"type": "text", "text": " there"}, image()]
    assert interleaved_text(parts, "<image>") == "hi<image> there<image>"
    assert interleaved_text("as <image> it is", "<img>") == "as <image> it is"
    assert interleaved_text([video(path="a"), TEXT, image()], "<image>", "<video>") == "<video>hi<image>"
