"""The commands on VILA checkpoints of every layout: a photo, a video, examples in the prompt."""

import json
import shutil

import pytest
import skimage.data
from PIL import Image

from vila_jax.scenes import draw_scene

NAMES = (
    "v1_single_folder",
    "v1arch_llama_clip_pad",
    "vila15_llama_siglip",
    "nvila_lite_qwen2_dynamic",
    "nvila_qwen2_dynamic_s2",
)
ERAS = {"v1_single_folder": "v1", "v1arch_llama_clip_pad": "vila1.5", "vila15_llama_siglip": "vila1.5"}


@pytest.fixture
def checkpoints(golden):
    return golden / "vila" / "checkpoints"


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "astronaut.png"
    Image.fromarray(skimage.data.astronaut()).save(path)
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    folder = tmp_path_factory.mktemp("video")
    for i in range(8):
        Image.fromarray(draw_scene(i).image).save(folder / f"frame_{i}.png")
    return folder


@pytest.fixture
def ask(vila_jax_cli):
    def run(*arguments):
        code, out, err = vila_jax_cli("ask", *map(str, arguments), "--max-new-tokens", "3", "--ignore-eos", "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    return run


@pytest.mark.parametrize("name", NAMES)
def test_inspect_says_the_era_aloud(vila_jax_cli, checkpoints, name):
    code, out, _ = vila_jax_cli("inspect", str(checkpoints / name), "--json")
    era = json.loads(out)["era"]
    assert code == 0 and era["name"] == ERAS.get(name, "nvila") and era["reason"]
    assert (era["token_order"] == "column by column") == (name == "vila15_llama_siglip")
    assert bool(era["after_image"]) == (era["name"] == "nvila")
    code, out, _ = vila_jax_cli("inspect", str(checkpoints / name))
    assert code == 0 and "era" in out


def test_the_era_can_be_overruled(vila_jax_cli, checkpoints):
    code, out, _ = vila_jax_cli("inspect", str(checkpoints / "vila15_llama_siglip"), "--era", "nvila", "--json")
    era = json.loads(out)["era"]
    assert code == 0 and era["name"] == "nvila" and era["token_order"] == "row by row" and era["after_image"]


@pytest.mark.parametrize("name", NAMES)
def test_ask_about_a_photo_with_and_without_a_budget(ask, checkpoints, photo, name):
    question = (checkpoints / name, "--image", photo, "--prompt", "What is this?")
    full, half = ask(*question), ask(*question, "--budget", "hired:0.5")
    assert len(full["token_ids"]) == len(half["token_ids"]) == 3
    assert full["visual_tokens"]["kept"] == full["visual_tokens"]["full"]
    assert half["visual_tokens"] == {"full": full["visual_tokens"]["full"], "kept": full["visual_tokens"]["full"] // 2}


@pytest.mark.parametrize("name", ["vila15_llama_siglip", "nvila_qwen2_dynamic_s2"])
def test_a_video_is_eight_pictures(ask, checkpoints, video, name):
    answer = ask(checkpoints / name, "--video", video, "--prompt", "What happens?")
    assert answer["visual_tokens"]["full"] == 8 * 4


@pytest.fixture(scope="module")
def pooling(golden, tmp_path_factory):
    """A checkpoint whose videos are pooled."""
    folder = tmp_path_factory.mktemp("pooling") / "model"
    shutil.copytree(golden / "vila" / "checkpoints" / "nvila_lite_qwen2_dynamic", folder)
    config = json.loads((folder / "config.json").read_text())
    options = {"pool_sizes": [[4, 1, 1], [2, 2, 2]], "sep_tokens": "\n"}
    encoder = json.dumps({"_target_": "llava.model.encoders.TSPVideoEncoder", **options})
    (folder / "config.json").write_text(json.dumps(config | {"video_encoder": encoder}))
    return folder


def test_a_video_is_pooled(ask, vila_jax_cli, pooling, video):
    question = pooling, "--video", video, "--prompt", "What happens?"
    assert ask(*question)["visual_tokens"] == {"full": 2 * 4 + 4, "kept": 2 * 4 + 4}
    assert ask(*question, "--num-frames", 4)["visual_tokens"]["full"] == 4 + 2
    code, _, err = vila_jax_cli("ask", *question, "--num-frames", 6)
    assert code == 6 and "6 frames cannot be pooled by 4" in err and "--num-frames" in err
    code, _, err = vila_jax_cli("ask", *question, "--budget", "hired:0.5")
    assert code == 7 and "without a budget" in err


def test_inspect_says_what_becomes_of_a_video(vila_jax_cli, checkpoints, pooling, tmp_path):
    def described(folder) -> tuple[dict, str]:
        facts, table = (vila_jax_cli("inspect", folder, *json_)[1] for json_ in (["--json"], []))
        return json.loads(facts)["video"], " ".join(table.replace("│", " ").split())

    facts, table = described(checkpoints / "nvila_lite_qwen2_dynamic")
    assert facts == {"encoder": "basic", "frames": 8, "fps": None, "tokens": 32}
    assert "8 frames, read as pictures: 32 visual tokens" in table
    facts, table = described(pooling)
    assert (facts["encoder"], facts["frames"], facts["tokens"]) == ("tsp", 8, 12)
    assert facts["pool_sizes"] == [[4, 1, 1], [2, 2, 2]]
    assert "pooled by 4 x 1 x 1 and 2 x 2 x 2 (TSP)" in table and "12 visual tokens" in table
    config = json.loads((pooling / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_video_frames": 6, "fps": 2.0}))
    facts, table = described(tmp_path)
    assert facts["tokens"] is None and "6 frames at most, 2 a second" in table
    assert "a pool size does not divide the frames" in table


@pytest.mark.parametrize("name", ["v1_single_folder", "nvila_lite_qwen2_dynamic"])
def test_four_examples_in_the_prompt(ask, checkpoints, video, name):
    """Picture, answer, four times, and the picture that is asked about."""
    prompt = "".join(f"<image>\nIt shows {word}.\n" for word in ("one", "two", "three", "four")) + "<image>\nIt shows"
    images = [part for i in range(5) for part in ("--image", video / f"frame_{i}.png")]
    answer = ask(checkpoints / name, *images, "--raw-prompt", "--prompt", prompt)
    per_picture = 16 if name.startswith("v1") else 4
    assert answer["visual_tokens"]["full"] == 5 * per_picture


def test_what_is_wrong_is_said(vila_jax_cli, checkpoints, photo, tmp_path):
    question = ("--image", str(photo), "--prompt", "What is this?")
    code, _, err = vila_jax_cli("ask", str(checkpoints / NAMES[2]), *question, "--style", "klingon")
    assert code == 3 and "klingon" in err
    code, _, err = vila_jax_cli("ask", str(checkpoints / NAMES[2]), "--video", str(tmp_path), "--prompt", "What?")
    assert code == 5 and str(tmp_path) in err.replace("\n", "")
