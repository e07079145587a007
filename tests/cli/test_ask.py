"""`vila-jax ask`: answers, in every form of output, and every broken input."""

import json
import pathlib
import shutil

import pytest
from PIL import Image

from vila_jax.vision.preprocess import Preprocessor

GREETING = "hello there"
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: <image>\n{} ASSISTANT:"
)


@pytest.fixture
def ask(vila_jax_cli, llava, photo):
    """Asks the small LLaVA-1.5 about the photo: the JSON object."""

    def run(*arguments, prompt=GREETING, image=photo):
        images = () if image is None else ("--image", image)
        code, out, err = vila_jax_cli("ask", llava, *images, "--prompt", prompt, "--json", *arguments)
        assert (code, err) == (0, "")
        assert out.count("\n") == 1
        return json.loads(out)

    return run


@pytest.mark.parametrize(
    ("case", "run", "budget"),
    [
        ("llava15_china", "r0.2_a0.5", ("--budget", "hired:0.2,variant=code")),
        ("llava15_china", "reference_full", ()),
    ],
)
def test_answers_as_the_reference(vila_jax_cli, golden, case, run, budget):
    folder = golden / "hired_e2e"
    facts = json.loads((folder / "cases.json").read_text())[case]
    expected = facts["runs"][run]
    arguments = ("--raw-prompt", "--prompt", facts["prompt"], "--max-new-tokens", 8, "--ignore-eos", "--json", *budget)
    code, out, _ = vila_jax_cli("ask", folder / facts["checkpoint"], "--image", folder / facts["image"], *arguments)
    answer = json.loads(out)
    assert code == 0
    assert answer["token_ids"] == expected["ids"]
    assert answer["prompt_tokens"] == expected["sequence"]
    assert answer["visual_tokens"] == {"full": 576, "kept": expected["image_tokens"]}
    assert answer["finish_reason"] == "length"


def test_the_object_has_exactly_the_documented_keys(ask):
    answer = ask("--max-new-tokens", 2)
    documented = {"text", "token_ids", "prompt_tokens", "visual_tokens", "finish_reason", "timings_s"}
    assert answer.keys() == documented
    assert answer["timings_s"].keys() == {"load", "compile", "preprocess", "prefill", "decode", "time_to_first_token"}
    assert all(value >= 0 for value in answer["timings_s"].values())


def test_a_prompt_is_what_a_user_says_after_the_picture(ask):
    said = ask("--max-new-tokens", 6)
    raw = ask("--max-new-tokens", 6, "--raw-prompt", prompt=VICUNA.format(GREETING))
    assert (said["token_ids"], said["prompt_tokens"]) == (raw["token_ids"], raw["prompt_tokens"])


def test_all_forms_of_output_hold_the_same_text(vila_jax_cli, ask, llava, photo):
    text = ask("--max-new-tokens", 9)["text"]
    arguments = ("ask", llava, "--image", photo, "--prompt", GREETING, "--max-new-tokens", 9)
    for form in ((), ("--no-stream",)):
        code, out, _ = vila_jax_cli(*arguments, *form)
        assert (code, out) == (0, f"{text}\n")


def test_the_closing_line_counts(vila_jax_cli, llava, photo):
    arguments = ("--prompt", "<image> hi", "--raw-prompt", "--max-new-tokens", 5, "--ignore-eos", "--budget", "hired:4")
    _, _, err = vila_jax_cli("ask", llava, "--image", photo, *arguments)
    assert err.count("\n") == 1
    assert "visual 16 → 4" in err
    assert "5 new tokens at" in err
    assert "(length)" in err


def test_several_pictures_in_order(ask, photo, wide_photo, monkeypatch):
    seen = []
    prepare = Preprocessor.__call__
    monkeypatch.setattr(Preprocessor, "__call__", lambda self, image: seen.append(image.size) or prepare(self, image))
    answer = ask("--max-new-tokens", 1, "--image", wide_photo)
    assert answer["visual_tokens"] == {"full": 32, "kept": 32}
    assert seen == [(400, 400), (320, 107)]


def test_without_a_picture(ask):
    assert ask("--max-new-tokens", 1, image=None)["visual_tokens"] == {"full": 0, "kept": 0}


def test_sampling_hangs_on_the_seed(ask):
    arguments = ("--max-new-tokens", 8, "--ignore-eos", "--temperature", 2, "--top-k", 300, "--top-p", 0.99)
    once, again, other = (ask(*arguments, "--seed", seed)["token_ids"] for seed in (1, 1, 2))
    assert once == again != other


def test_a_stop_text_ends_the_answer(ask):
    text = ask("--max-new-tokens", 12, "--ignore-eos")["text"]
    stop = text[3:5]
    stopped = ask("--max-new-tokens", 12, "--ignore-eos", "--stop", stop)
    assert stopped["text"] == text[: text.index(stop)]
    assert stopped["finish_reason"] == "stop"


def _without(folder: pathlib.Path, *names: str) -> pathlib.Path:
    for name in names:
        (folder / name).unlink()
    return folder


def _cut(path: pathlib.Path) -> pathlib.Path:
    path.write_bytes(path.read_bytes()[:-100])
    return path.parent


def _index(folder: pathlib.Path, file: str) -> pathlib.Path:
    _without(folder, "model.safetensors")
    weight_map = {"language_model.model.norm.weight": file}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def _text(path: pathlib.Path, text: str) -> pathlib.Path:
    path.write_text(text)
    return path.parent


def _pickled(folder: pathlib.Path) -> pathlib.Path:
    return _text(_without(folder, "model.safetensors") / "pytorch_model.bin", "no one opens this")


BROKEN_MODELS = {
    "no folder": (lambda folder: folder / "absent", 8, "there is no such folder"),
    "no config": (lambda folder: _without(folder, "config.json"), 3, "config.json"),
    "config is not JSON": (lambda folder: _text(folder / "config.json", "{"), 3, "not valid JSON"),
    "another architecture": (lambda folder: _text(folder / "config.json", '{"model_type": "bert"}'), 3, "bert"),
    "no weights": (lambda folder: _without(folder, "model.safetensors"), 4, "there are no weights"),
    "pickles": (_pickled, 4, "save_pretrained"),
    "truncated": (lambda folder: _cut(folder / "model.safetensors"), 4, "truncated"),
    "shard is missing": (lambda folder: _index(folder, "model-00001-of-00002.safetensors"), 4, "missing"),
    "shard is elsewhere": (lambda folder: _index(folder, "../../etc/passwd"), 4, "own folder"),
    "no tokenizer": (lambda folder: _without(folder, "tokenizer.json"), 4, "no tokenizer"),
}


@pytest.mark.parametrize("how", BROKEN_MODELS)
def test_broken_model(vila_jax_cli, llava, photo, tmp_path, how):
    damage, expected, named = BROKEN_MODELS[how]
    model = damage(pathlib.Path(shutil.copytree(llava, tmp_path / "model")))
    code, out, err = vila_jax_cli("ask", model, "--image", photo, "--prompt", "hi", "--json")
    assert (code, out) == (expected, "")
    assert err.startswith("error: ")
    assert named in err
    assert "Traceback" not in err


def _broken_picture(folder: pathlib.Path, kind: str) -> pathlib.Path:
    path = folder / "picture.png"
    if kind == "truncated":
        Image.effect_noise((64, 64), 50).save(path)
        path.write_bytes(path.read_bytes()[:900])
    if kind == "no picture":
        path.write_text("hello")
    return path


@pytest.mark.parametrize(
    ("kind", "named"),
    [("missing", "no such file"), ("truncated", "cut off"), ("no picture", "not a JPEG, PNG")],
)
def test_broken_picture_is_found_before_the_model_is_opened(vila_jax_cli, tmp_path, kind, named):
    path = _broken_picture(tmp_path, kind)
    code, out, err = vila_jax_cli("ask", tmp_path / "no-model", "--image", path, "--prompt", "hi", "--json")
    assert (code, out) == (5, "")
    assert err.startswith(f"error: {path}: ")
    assert named in err


@pytest.mark.parametrize(
    ("arguments", "expected", "named"),
    [
        (("--prompt", "hi", "--budget", "hird:0.2"), 7, "Did you mean 'hired'"),
        (("--prompt", "hi", "--budget", "hired:2.5"), 7, "above 1"),
        (("--prompt", "hi", "--budget", "hired"), 7, "NAME:KEEP"),
        (("--prompt", "hi", "--budget", "hired:17"), 7, "has only 16"),
        (("--prompt", "hi", "--raw-prompt"), 6, "holds 0 image placeholders, but 1 images"),
        (("--prompt", "<image> <image>", "--raw-prompt"), 6, "holds 2 image placeholders, but 1 images"),
        (("--prompt", "hi", "--max-new-tokens", 5000), 6, "context is 512"),
    ],
)
def test_broken_request(vila_jax_cli, llava, photo, arguments, expected, named):
    code, out, err = vila_jax_cli("ask", llava, "--image", photo, "--json", *arguments)
    assert (code, out) == (expected, "")
    assert err.startswith("error: ")
    assert named in err
