"""What is asked, brought to one form: images and videos find their parts, contradictions are named."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from conftest_models import PROMPT, picture

from tam_fast.models.chat import DEFAULT_PROMPTS, read_chat


def user(*parts):
    return {"role": "user", "content": list(parts)}


def said(text):
    return {"type": "text", "text": text}


def assistant(text):
    return {"role": "assistant", "content": text}


IMAGE = {"type": "image"}


def data(image):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def test_a_prompt_is_one_turn():
    chat = read_chat([picture(), picture(seed=1)], PROMPT)
    assert chat.messages == (user(IMAGE, IMAGE, said(PROMPT)),)
    assert (len(chat.images), chat.first, chat.prompt, chat.answer, chat.prefix) == (2, 0, PROMPT, None, "")
    assert chat.is_plain


def test_what_is_asked_if_nothing_is():
    assert read_chat(picture()).prompt == DEFAULT_PROMPTS[0]
    assert read_chat(videos=np.zeros((2, 8, 8, 3), np.uint8)).prompt == DEFAULT_PROMPTS[1]
    with pytest.raises(ValueError, match="images: expected at least one image, a video, messages, or a prompt"):
        read_chat()


def test_a_text_needs_no_image():
    chat = read_chat(prompt=PROMPT)
    assert (chat.images, chat.videos, chat.messages) == ([], [], (user(said(PROMPT)),))


@pytest.mark.parametrize(
    "part",
    [
        lambda image: {"type": "image", "image": image},
        lambda image: {"type": "image", "image": np.asarray(image)},
        lambda image: {"type": "image", "base64": base64.b64encode(data(image)).decode()},
        lambda image: {
            "type": "image_url",
            "image_url": {"url": "data:image/png;base64," + base64.b64encode(data(image)).decode()},
        },
        lambda image: {"type": "image", "url": "data:image/png;base64," + base64.b64encode(data(image)).decode()},
    ],
)
def test_parts_bring_their_pictures(part):
    image = picture()
    chat = read_chat(messages=[user(part(image), said("What?"))])
    assert chat.images[0].tobytes() == image.tobytes()
    assert chat.messages == (user(IMAGE, said("What?")),)


def test_a_part_may_name_a_file(tmp_path):
    picture().save(tmp_path / "a.png")
    chat = read_chat(messages=[user({"type": "image", "path": str(tmp_path / "a.png")}, said("What?"))])
    assert chat.images[0].tobytes() == picture().tobytes()


def test_images_fill_the_parts_without_data_in_order():
    one, two, three = (picture(seed=seed) for seed in range(3))
    chat = read_chat(
        [one, three],
        messages=[user(IMAGE, {"type": "image", "image": two}, said("a")), assistant("b"), user(IMAGE, said("c"))],
    )
    assert [image.tobytes() for image in chat.images] == [image.tobytes() for image in (one, two, three)]


def test_the_rate_of_a_video_part_is_that_of_its_frames():
    frames = np.zeros((4, 8, 8, 3), np.uint8)
    part = {"type": "video", "video": frames, "fps": 4.0}
    chat = read_chat(messages=[user(part, said("What?"))])
    assert chat.videos[0].times == [0.0, 0.25, 0.5, 0.75]
    assert chat.messages == (user({"type": "video"}, said("What?")),)
    chat = read_chat(videos={"video": frames, "fps": 1.0}, messages=[user({"type": "video"}, said("What?"))])
    assert chat.videos[0].times == [0.0, 1.0, 2.0, 3.0]


def test_a_past_turn_is_explained_as_it_stood():
    messages = [
        {"role": "system", "content": "Be brief."},
        user({"type": "image", "image": picture()}, said("First?")),
        assistant("One."),
        user({"type": "image", "image": picture(seed=1)}, said("Second?")),
        assistant("Two."),
    ]
    chat = read_chat(messages=messages, turn=0)
    assert (chat.answer, chat.prompt, len(chat.images), len(chat.messages)) == ("One.", "First?", 1, 2)
    chat = read_chat(messages=messages, turn=1)
    assert (chat.answer, chat.prompt, len(chat.images), chat.first) == ("Two.", "Second?", 2, 3)


def test_images_of_all_turns_may_be_given_for_a_past_one():
    pictures = [picture(seed=seed) for seed in range(2)]
    messages = [user(IMAGE, said("a")), assistant("b"), user(IMAGE, said("c")), assistant("d")]
    for given in (pictures, pictures[:1]):
        chat = read_chat(given, messages=messages, turn=0)
        assert [image.tobytes() for image in chat.images] == [pictures[0].tobytes()]
    assert len(read_chat(pictures, messages=messages, turn=1).images) == 2
    with pytest.raises(ValueError, match=r"images: expected one for each of 1 \(up to the turn\) or 2 image parts"):
        read_chat([*pictures, picture()], messages=messages, turn=0)


def test_qwens_name_for_a_number_of_frames():
    frames = np.zeros((6, 8, 8, 3), np.uint8)
    chat = read_chat(messages=[user({"type": "video", "video": frames, "nframes": 3}, said("What?"))])
    assert len(chat.videos[0].frames) == 3


def test_with_tools_the_last_answer_counts():
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    messages = [
        user(said("What?")),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "name": "look", "content": "a dog"},
        assistant("A dog."),
    ]
    chat = read_chat(messages=messages, turn=0)
    assert (chat.answer, chat.first, len(chat.messages)) == ("A dog.", 0, 3)
    assert chat.messages[1]["tool_calls"] == [call]


def test_the_last_assistants_message_is_the_answers_beginning():
    chat = read_chat(messages=[user(said("What?")), assistant("It is a")])
    assert (chat.prefix, len(chat.messages), chat.answer) == ("It is a", 1, None)
    assert read_chat(messages=[user(said("What?"))], prefix="It is a").prefix == "It is a"
    assert read_chat(prompt="What?", prefix="It is a").prefix == "It is a"


@pytest.mark.parametrize(
    "given, message",
    [
        ({"messages": []}, "messages: expected at least one, got none"),
        ({"messages": [user(said("a"))], "prompt": "b"}, "prompt: expected none with messages"),
        ({"messages": [{"role": "robot", "content": "a"}]}, r"messages\[0\]: expected role .* got 'robot'"),
        ({"messages": [{"role": "system", "content": "a"}]}, "messages: expected one of a user, got system"),
        ({"messages": [user({"type": "audio"})]}, r"messages\[0\]\['content'\]\[0\]: expected type .* got 'audio'"),
        ({"messages": [user(IMAGE, said("a"))]}, "images: expected one for each of 1 image parts .* got 0"),
        ({"messages": [user(said("a"))], "images": picture()}, "images: expected one for each of 0 .* got 1"),
        ({"messages": [user(IMAGE, IMAGE, said("a"))], "images": picture()}, "images: .* of 2 image parts .* got 1"),
        ({"messages": [user({"type": "image", "url": "https://x.org/a.png"})]}, r"\[0\]: expected a path, got the URL"),
        ({"messages": [user({"type": "image", "base64": "!!"})]}, r"\[0\]: expected base64, got '!!'"),
        (
            {"messages": [user({"type": "image", "path": "a", "url": "b"})]},
            r"\[0\]: expected one of .* got url, path",
        ),
        ({"messages": [user(said("a"))], "turn": 0}, "turn: .* got 0, whose answer is not recorded: leave turn out"),
        ({"messages": [user(said("a")), assistant("b")], "turn": 1}, "turn: expected -1 .* or 0 to 0, .* got 1"),
        ({"messages": [user(said("a")), assistant("b")], "turn": -2}, "turn: expected -1 .* got -2"),
        ({"messages": [user(said("a")), assistant("  ")]}, "messages: expected the beginning of an answer"),
        ({"prompt": "a", "turn": 1}, r"turn: expected -1 \(the next answer\) without messages"),
        ({"prompt": " ", "images": picture()}, "prompt: expected a text"),
        (
            {"messages": [user({"type": "image", "image": picture(), "max_pixels": 3})]},
            r"\[0\]: expected .*image.*, got max_pixels: set it on the processor",
        ),
        ({"prompt": "a", "fps": 2.0}, "fps: expected none without videos, got 2"),
        ({"prompt": "a", "prefix": " "}, "prefix: expected the beginning of an answer"),
        ({"messages": [user(said("a")), assistant("b")], "prefix": "c"}, "prefix: expected none with a last message"),
        (
            {"messages": [user(said("a")), assistant("b")], "prefix": "c", "turn": 0},
            "prefix: expected none with turn=0",
        ),
    ],
)
def test_contradictions_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        read_chat(**given)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"messages": "a"}, "messages: expected a list"),
        ({"messages": {"role": "user"}}, "messages: expected a list"),
        ({"messages": ["a"]}, r"messages\[0\]: expected \{'role'"),
        ({"messages": [{"role": "user", "content": 3}]}, r"\['content'\]: expected a text or a list of parts, got int"),
        ({"messages": [user({"type": "text", "text": 3})]}, "expected a string as text, got int"),
        ({"prompt": "a", "turn": True}, "turn: expected a whole number"),
        ({"prompt": 3, "images": picture()}, "prompt: expected a string, got int"),
    ],
)
def test_other_types_are_named(given, message):
    with pytest.raises(TypeError, match=message):
        read_chat(**given)
