"""`image_encoder` and `video_encoder`: what is understood, what absence means, what is refused."""

import json
import shutil

import pytest

from tests.published import LLAVA_15_7B, VILA
from vila_jax.errors import ConfigError
from vila_jax.hf.checkpoint import open_checkpoint
from vila_jax.hf.config import parse_config
from vila_jax.hf.targets import make_target
from vila_jax.vision.pooling import TSP, VideoConfig

V1, VILA15, INTERN, NVILA = (VILA[name] for name in ("VILA-7b", "VILA1.5-3b", "VILA1.5-40b", "NVILA-8B"))
POOLING = "llava.model.encoders.TSPVideoEncoder"
BASIC = "llava.model.encoders.BasicVideoEncoder"
POOLED = {"_target_": POOLING, "pool_sizes": [[8, 1, 1]]}
"""As in NVILA-8B-Video."""


def video(config: dict, **keys) -> VideoConfig:
    return parse_config(config | keys).video


@pytest.mark.parametrize("config", [LLAVA_15_7B, V1, VILA15, NVILA])
def test_absent_encoders_read_frames_as_pictures(config):
    plain = {key: value for key, value in config.items() if key not in ("num_video_frames", "video_encoder")}
    assert parse_config(plain).video == VideoConfig(num_frames=8, fps=None, tsp=None)


@pytest.mark.parametrize(
    "encoder", [None, {}, {"_target_": BASIC}, json.dumps({"_target_": BASIC, "end_tokens": "\n"})]
)
def test_basic_encoders(encoder):
    config = video(NVILA, video_encoder=encoder, num_video_frames=16, fps=2.0)
    assert config == VideoConfig(num_frames=16, fps=2.0)
    assert video(NVILA, video_encoder=encoder, fps=0.0, num_video_frames=None) == VideoConfig()


@pytest.mark.parametrize("write", [dict, json.dumps])
def test_pooling(write):
    config = video(NVILA, video_encoder=write(POOLED), num_video_frames=256)
    assert config == VideoConfig(num_frames=256, tsp=TSP(((8, 1, 1),), None, "\n", None))
    options = {"pool_sizes": [[16, 1, 1], [4, 2, 8]], "start_tokens": "a", "end_tokens": None, "sep_tokens": "b\n"}
    several = video(NVILA, video_encoder=write(POOLED | options))
    assert several.tsp == TSP(((16, 1, 1), (4, 2, 8)), "a", None, "b\n")
    assert hash(several) == hash(video(NVILA, video_encoder=write(POOLED | options)))


def test_pooling_shows_the_era():
    assert parse_config(VILA15).era == "vila1.5"
    pooled = parse_config(VILA15 | {"video_encoder": POOLED})
    assert (pooled.era, pooled.era_reason) == ("nvila", "videos are pooled")
    assert not pooled.pictures.column_major


REFUSED = {
    "unknown": (
        {"_target_": "os.system"},
        r"video_encoder\._target_.*BasicVideoEncoder or .*TSPVideoEncoder.*os.system",
    ),
    "of pictures": ({"_target_": "llava.model.encoders.BasicImageEncoder"}, "video_encoder._target_.*BasicImage"),
    "no object": (json.dumps([POOLED]), "video_encoder.*an object"),
    "no JSON": ("TSP", "video_encoder.*expected JSON"),
    "option": (POOLED | {"pool_size": 3}, "video_encoder.pool_size.*no such option.*pool_sizes, start_tokens"),
    "option of the basic one": ({"_target_": BASIC, "pool_sizes": [[8, 1, 1]]}, "pool_sizes.*no such option"),
    "end of the basic one": ({"_target_": BASIC, "end_tokens": None}, r"video_encoder.end_tokens.*'\\n'.*None"),
    "no sizes": ({"_target_": POOLING}, "pool_sizes.*a list of triples.*nothing"),
    "empty sizes": (POOLED | {"pool_sizes": []}, "pool_sizes.*a list of triples"),
    "one size": (POOLED | {"pool_sizes": [8, 1, 1]}, "pool_sizes.*a list of triples"),
    "a pair": (POOLED | {"pool_sizes": [[8, 1]]}, "pool_sizes.*a list of triples"),
    "zero": (POOLED | {"pool_sizes": [[8, 0, 1]]}, "pool_sizes.*from 1"),
    "true": (POOLED | {"pool_sizes": [[True, 1, 1]]}, "pool_sizes.*whole numbers"),
    "rows": (POOLED | {"pool_sizes": [[8, 1, 1], [1, 3, 1]]}, "pool_sizes.*divide the 16 x 16 tokens"),
    "columns": (POOLED | {"pool_sizes": [[1, 1, 5]]}, "pool_sizes.*divide the 16 x 16 tokens"),
    "text": (POOLED | {"sep_tokens": 3}, "sep_tokens.*a string or null.*3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named(name):
    encoder, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        video(NVILA, video_encoder=encoder)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_video_frames": 0}, "num_video_frames.*at least 1"),
        ({"num_video_frames": "8"}, "num_video_frames.*an integer"),
        ({"fps": -1.0}, "fps.*positive"),
    ],
)
def test_sampling_is_checked(keys, message):
    with pytest.raises(ConfigError, match=message):
        video(NVILA, **keys)


def test_no_pooling_of_class_tokens_nor_before_nvila():
    clip = {"vision_tower_cfg": {"model_type": "clip_vision_model"}, "mm_hidden_size": 768}
    projector = {"mm_projector_cfg": {"mm_projector_type": "mlp2x_gelu"}}
    clip |= projector | {"mm_vision_select_feature": "cls_patch", "video_encoder": POOLED}
    with pytest.raises(ConfigError, match=r"mm_vision_select_feature.*no place among pooled frames"):
        parse_config(INTERN | clip)
    for config in (V1, NVILA):
        with pytest.raises(ConfigError, match=r"era: got 'v1'.*TSPVideoEncoder.*before NVILA"):
            parse_config(config | {"video_encoder": POOLED}, era="v1")


@pytest.mark.parametrize("to", ["hf", "llava"])
def test_layouts_without_pooling(golden, tmp_path, to):
    folder = tmp_path / "model"
    shutil.copytree(golden / "vila" / "checkpoints" / "v1arch_llama_clip_pad", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"video_encoder": POOLED}))
    with pytest.raises(ConfigError, match=r"has no place for videos that are pooled.*--to vila"):
        make_target(open_checkpoint(folder), to, None)
    assert make_target(open_checkpoint(folder), "vila", None).files
