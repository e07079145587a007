"""Videos that are pooled (TSP), through the public API on golden checkpoints whose `video_encoder` is rewritten.

The oracle pools, in PyTorch and axis by axis as the reference does, the tokens that the same checkpoint gives to its
frames as single pictures; it is itself held against the reference's own vectors first.
"""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
import safetensors
import tokenizers
import torch
import transformers
from PIL import Image

from vila_jax.errors import BudgetError, ConfigError, PromptError
from vila_jax.model import Model, from_pretrained
from vila_jax.scenes import draw_scene
from vila_jax.text.messages import VideoSource

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "vila"
QWEN, LLAMA, LITE = "nvila_qwen2_dynamic_s2", "v1arch_llama_clip_pad", "nvila_lite_qwen2_dynamic"
SEVERAL = {"pool_sizes": [[4, 2, 2], [1, 1, 2]], "start_tokens": "frame", "end_tokens": None, "sep_tokens": "\n and"}
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 150, 3), dtype=np.uint8))


def frames(number: int, first: int = 0) -> list[Image.Image]:
    return [Image.fromarray(draw_scene(first + i).image) for i in range(number)]


def video(number: int, first: int = 0) -> VideoSource:
    return VideoSource(frames(number, first), number)


def pool(features: np.ndarray, options: dict, texts: dict[str, np.ndarray | None]) -> np.ndarray:
    """What the reference makes of the tokens `[frames, tokens, width]` of a video and the embeddings of its texts."""
    count, tokens, width = features.shape
    side = round(tokens**0.5)
    parts = []
    for t, h, w in options["pool_sizes"]:
        x = torch.tensor(features).view(count // t, t, side, side, width).mean(1)
        x = x.view(count // t, side // h, h, side, width).mean(2)
        x = x.view(count // t, side // h, side // w, w, width).mean(3)
        for frame in x.flatten(1, 2).numpy():
            parts += [texts["start"], frame, texts["end"]]
        parts.append(texts["sep"])
    return np.concatenate([part for part in parts if part is not None])


def test_the_oracle_is_the_reference():
    data = np.load(GOLDEN / "modules" / "video_encoders.npz")
    texts = {key: data[f"{key}_embeds"] for key in ("start", "end", "sep")}
    pools = {
        "8_1_1": [[8, 1, 1]],
        "4_2_2": [[4, 2, 2]],
        "multi_16_1_1__4_2_2__1_4_4": [[16, 1, 1], [4, 2, 2], [1, 4, 4]],
    }
    for name, sizes in pools.items():
        pooled = pool(data["features"], {"pool_sizes": sizes}, texts)
        np.testing.assert_allclose(pooled, data[f"tsp_{name}_start_end_sep"], atol=1e-6)
        ended = pool(data["features"], {"pool_sizes": sizes}, texts | {"start": None, "sep": None})
        np.testing.assert_allclose(ended, data[f"tsp_{name}_end"], atol=1e-6)


@dataclasses.dataclass(frozen=True)
class Oracle:
    """A golden checkpoint, its frames read as pictures."""

    name: str
    model: Model

    @property
    def folder(self) -> pathlib.Path:
        return GOLDEN / "checkpoints" / self.name / "llm"

    def ids(self, text: str, special: bool = True) -> list[int]:
        tokenizer = tokenizers.Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        return tokenizer.encode(text, add_special_tokens=special).ids

    def embed(self, ids: list[int]) -> np.ndarray:
        for file in self.folder.glob("*.safetensors"):
            with safetensors.safe_open(file, "pt") as tensors:
                if "model.embed_tokens.weight" in tensors.keys():  # noqa: SIM118
                    return tensors.get_tensor("model.embed_tokens.weight").float().numpy()[ids]
        raise AssertionError("no embedding")

    def text(self, text: str | None, special: bool = True) -> np.ndarray | None:
        return None if text is None else self.embed(self.ids(text, special))

    def features(self, pictures: list[Image.Image]) -> np.ndarray:
        """Tokens of every picture, none of them alone in its prompt."""
        side = self.model.config.pictures.cells
        begin, newline = len(self.ids("")), len(self.ids("\n"))
        embedded = self.model.embeddings("<image>" * len(pictures), pictures)[begin:]
        return embedded.reshape(len(pictures), side**2 + newline, -1)[:, : side**2]

    def video(self, pictures: list[Image.Image], options: dict) -> np.ndarray:
        given = {"start_tokens": None, "end_tokens": "\n", "sep_tokens": None} | options
        texts = {key: self.text(given[f"{key}_tokens"]) for key in ("start", "end", "sep")}
        return pool(self.features(pictures), options, texts)


@pytest.fixture(scope="module")
def oracle():
    made: dict[str, Oracle] = {}

    def get(name: str) -> Oracle:
        if name not in made:
            made[name] = Oracle(name, from_pretrained(GOLDEN / "checkpoints" / name, era="nvila"))
        return made[name]

    return get


def rewritten(tmp_path: pathlib.Path, name: str, options: dict, **keys) -> pathlib.Path:
    """A copy of a golden checkpoint whose videos are pooled."""
    folder = tmp_path / name
    shutil.copytree(GOLDEN / "checkpoints" / name, folder)
    config = json.loads((folder / "config.json").read_text())
    encoder = {"_target_": "llava.model.encoders.TSPVideoEncoder", **options}
    (folder / "config.json").write_text(json.dumps(config | {"video_encoder": json.dumps(encoder)} | keys))
    return folder


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> Model:
    """Two pools, texts around and between."""
    return from_pretrained(rewritten(tmp_path_factory.mktemp("several"), QWEN, SEVERAL))


@pytest.mark.parametrize("sizes", [[[8, 1, 1]], [[4, 2, 2]]])
def test_a_video_of_the_checkpoints_own_number_of_frames(oracle, tmp_path, sizes):
    plain, options = oracle(QWEN), {"pool_sizes": sizes}
    model = from_pretrained(rewritten(tmp_path, QWEN, options))
    embedded = model.embeddings("<vila/video>", [VideoSource(frames(8))])
    np.testing.assert_allclose(embedded, plain.video(frames(8), options), atol=1e-6)


def test_the_pools_of_the_reference_behind_a_llama_tokenizer(oracle, tmp_path):
    """Texts around a frame begin with BOS; and a checkpoint that pools is NVILA's, whatever else it looks like."""
    options = {"pool_sizes": [[16, 1, 1], [4, 2, 2], [1, 4, 4]], "start_tokens": "a", "sep_tokens": "b"}
    plain, model = oracle(LLAMA), from_pretrained(rewritten(tmp_path, LLAMA, options, num_video_frames=16))
    assert model.config.era == "nvila" and "videos are pooled" in model.config.era_reason
    assert model.token_ids("<vila/video>", [VideoSource(frames(16))]) == [1, 402]
    embedded = model.embeddings("<vila/video>", [VideoSource(frames(16))])
    np.testing.assert_allclose(embedded, [*plain.embed([1]), *plain.video(frames(16), options)], atol=1e-6)


def mixed(oracle: Oracle) -> np.ndarray:
    """A picture and two videos of different lengths among text."""
    picture = oracle.model.embeddings("<image>", [PICTURE])  # alone among pictures: cut into blocks
    texts = [oracle.text(text) for text in ("First ", " then ", " or ", " Why?")]
    shown = [picture, oracle.video(frames(8), SEVERAL), oracle.video(frames(4, 20), SEVERAL)]
    return np.concatenate([texts[0], *(part for pair in zip(shown, texts[1:], strict=True) for part in pair)])


MIXED = "First <image> then <vila/video> or <vila/video> Why?"
SHOWN = [PICTURE, video(8), video(4, 20)]


def test_pictures_and_videos_in_one_prompt(oracle, several):
    expected = mixed(oracle(QWEN))
    np.testing.assert_allclose(several.embeddings(MIXED, SHOWN), expected, atol=1e-6)
    tokenizer = tokenizers.Tokenizer.from_file(str(oracle(QWEN).folder / "tokenizer.json"))
    assert several.token_ids(MIXED, SHOWN) == tokenizer.encode(MIXED).ids
    assert len(several.logits(MIXED, SHOWN)) == len(expected)


def test_greedy_ids_are_those_of_transformers(oracle, several):
    llm = transformers.AutoModelForCausalLM.from_pretrained(oracle(QWEN).folder, dtype=torch.float32).eval()
    embedded, wanted = torch.from_numpy(mixed(oracle(QWEN)))[None], []
    for _ in range(8):
        with torch.no_grad():
            wanted.append(int(llm(inputs_embeds=embedded).logits[0, -1].argmax()))
        following = torch.from_numpy(oracle(QWEN).embed(wanted[-1:]))[None]
        embedded = torch.cat([embedded, following], dim=1)
    answer = several.generate(MIXED, SHOWN, max_new_tokens=8, ignore_eos=True)
    assert list(answer.token_ids) == wanted
    # 8 frames of 2 x 2 tokens: 2 of the first pool and 16 of the second; of 4 frames half of that
    assert answer.usage.visual_tokens_kept == answer.usage.visual_tokens_full
    assert answer.usage.visual_tokens_full == several.count_tokens((60, 150)) + 18 + 9


def test_a_batch_answers_as_each_prompt_alone(several):
    batch = [
        ("What happens? <vila/video>", [video(8, 3)]),
        (MIXED, SHOWN),
        ("Nothing is shown.", []),
        ("<vila/video><image>", [video(12, 5), PICTURE]),
    ]
    prompts, media = map(list, zip(*batch, strict=True))
    options = {"max_new_tokens": 4, "ignore_eos": True}
    together = several.generate(prompts, media, **options)
    for answer, (prompt, own) in zip(together, batch, strict=True):
        alone = several.generate(prompt, own, **options)
        assert answer.token_ids == alone.token_ids and answer.usage == alone.usage


def test_messages_show_videos_where_they_stand(several, tmp_path):
    for i, frame in enumerate(frames(8)):
        frame.save(tmp_path / f"{i}.png")
    content = [
        {"type": "text", "text": "First "},
        {"type": "video", "path": str(tmp_path), "num_frames": 4},
        {"type": "text", "text": " then "},
        {"type": "image", "image": PICTURE},
    ]
    messages = [{"role": "user", "content": content}]
    prompt = several.form.render([{"role": "user", "content": "First <vila/video> then <image>"}], None, [4, None])
    shown = [VideoSource([frames(8)[i] for i in (0, 2, 5, 7)], 4), PICTURE]
    assert several.token_ids(messages=messages) == several.token_ids(prompt, shown)
    np.testing.assert_array_equal(several.embeddings(messages=messages), several.embeddings(prompt, shown))


def test_a_picture_beside_a_video_is_still_cut_into_tiles(tmp_path):
    model = from_pretrained(rewritten(tmp_path, LITE, {"pool_sizes": [[4, 1, 1]]}))
    shown = [{"type": "image", "image": PICTURE}, {"type": "video", "video": frames(8)}]
    ids = model.token_ids(messages=[{"role": "user", "content": shown}])
    tiles = model.preprocessor.geometry((60, 150)).num_tiles
    assert tiles > 1 and ids.count(model.form.image_id) == tiles
    answer = model.generate(messages=[{"role": "user", "content": shown}], max_new_tokens=1)
    assert answer.usage.visual_tokens_full == tiles * 4 + 2 * 4


def test_another_video_of_as_many_frames_compiles_nothing(several, count_compilations):
    def run(first: int, size: tuple[int, int], question: str) -> None:
        own = VideoSource([frame.resize(size) for frame in frames(8, first)])
        several.generate(f"<vila/video>{question}", [own], max_new_tokens=2, ignore_eos=True)

    run(0, (64, 64), "Why?")
    with count_compilations() as count:
        run(8, (90, 40), "What?")
        run(16, (30, 70), "")
    assert count() == 0


@pytest.mark.parametrize(
    ("prompt", "media", "message"),
    [
        ("<vila/video>", [video(6)], r"video 0: 6 frames cannot be pooled by 4.*\[4, 2, 2\].*multiple of 4"),
        ("<vila/video><vila/video>", [video(4), video(2)], "video 1: 2 frames"),
        ("<vila/video>", [], "1 video placeholders, but 0 videos"),
        ("Why?", [video(4)], "0 video placeholders, but 1 videos"),
        ("<vila/video><image>", [video(4)], "1 image placeholders, but 0 images"),
        ("<image><vila/video>", [video(4), PICTURE], "another order"),
    ],
)
def test_requests_that_cannot_be_met(several, prompt, media, message):
    with pytest.raises(PromptError, match=message):
        several.generate(prompt, media)


def test_videos_without_pooling_keep_the_order_of_pictures_too(oracle):
    with pytest.raises(PromptError, match="another order"):
        oracle(QWEN).model.generate("<image><vila/video>", [video(4), PICTURE])


def test_a_budget_is_refused(several):
    with pytest.raises(BudgetError, match=r"hired:0.5.*pools those of a video.*without a budget"):
        several.generate("<vila/video>", [video(4)], budget="hired:0.5")
    assert several.generate("<image>", [PICTURE], budget="hired:0.5", max_new_tokens=1).usage.visual_tokens_kept == 20
    assert several.generate("<vila/video>", [video(4)], budget="hired:1.0", max_new_tokens=1).token_ids


def test_an_era_that_never_pooled_is_refused(tmp_path):
    folder = rewritten(tmp_path, QWEN, SEVERAL)
    with pytest.raises(ConfigError, match=r"era: got 'vila1.5'.*TSPVideoEncoder.*before NVILA"):
        from_pretrained(folder, era="vila1.5")
