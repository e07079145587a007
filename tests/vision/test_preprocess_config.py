"""Reading the files of Hugging Face image processors."""

import pytest
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from vila_jax.errors import ConfigError
from vila_jax.vision.preprocess import PreprocessConfig

NEXT = {"size": 56, "crop_size": 56, "image_grid_pinpoints": [[56, 112], [112, 56]]}


@pytest.mark.parametrize(
    "cls", [CLIPImageProcessorPil, SiglipImageProcessorPil, LlavaImageProcessorPil, LlavaNextImageProcessorPil]
)
@pytest.mark.parametrize("suffix", ["", "Fast", "Pil"])
def test_missing_keys_take_the_defaults_of_transformers(cls, suffix):
    name = cls.__name__.removesuffix("Pil")
    anyres = cls is LlavaNextImageProcessorPil
    # The defaults of LlavaNextImageProcessor contradict each other (tiles of 224 on canvases in steps of 336).
    given = NEXT if anyres else {}
    full = cls(**given).to_dict()
    model_type = "llava_next" if anyres else "llava"
    assert PreprocessConfig.from_hf(
        {"image_processor_type": name + suffix, **given}, model_type=model_type
    ) == PreprocessConfig.from_hf(full, model_type=model_type)
    assert full["image_processor_type"] == name


def test_default_canvases_of_llava_next():
    config = PreprocessConfig.from_hf({"size": 336, "crop_size": 336}, model_type="llava_next")
    assert [list(size) for size in config.pinpoints] == LlavaNextImageProcessorPil.image_grid_pinpoints


def test_class_follows_from_the_model_where_the_file_names_none():
    assert PreprocessConfig.from_hf(NEXT, model_type="llava_next").pinpoints == ((56, 112), (112, 56))
    assert PreprocessConfig.from_hf(NEXT, model_type="llava").pinpoints is None
    with pytest.raises(ConfigError, match="image_processor_type"):
        PreprocessConfig.from_hf(NEXT, model_type="bert")


def test_older_names_and_both_forms_of_the_file():
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 56, "crop_size": 56}
    new = {"image_processor": {"image_processor_type": "CLIPImageProcessor", "size": 56, "crop_size": 56}}
    assert PreprocessConfig.from_hf(old, model_type="llava") == PreprocessConfig.from_hf(new, model_type="llava")


@pytest.mark.parametrize(
    "size, expected",
    [
        (56, 56),
        ({"shortest_edge": 56}, 56),
        ({"shortest_edge": 56, "height": None, "width": None}, 56),
        ({"height": 56, "width": 60}, (56, 60)),
        ([56, 60], (56, 60)),
    ],
)
def test_forms_of_a_size(size, expected):
    assert PreprocessConfig.from_hf({"size": size}, model_type="llava").size == expected
    square = {"size": size, "default_to_square": True}
    assert PreprocessConfig.from_hf(square, model_type="llava").size == ((56, 56) if size == 56 else expected)


def test_off_switches():
    off = dict.fromkeys(["do_resize", "do_rescale", "do_normalize"], False)
    config = PreprocessConfig.from_hf(off, model_type="llava")
    assert (config.size, config.rescale_factor, config.do_normalize) == (None, None, False)


def test_mean_and_std_may_be_null_where_nothing_is_normalized():
    null = {"do_normalize": False, "image_mean": None, "image_std": None}
    config = PreprocessConfig.from_hf(null, model_type="llava")
    assert (config.do_normalize, config.mean) == (False, (0, 0, 0))  # the mean still colours the padding


@pytest.mark.parametrize("config", [{}, {"processor_class": "LlavaProcessor"}, {"image_processor": "CLIP"}])
def test_other_files_are_refused(config):
    with pytest.raises(ConfigError, match="no setting of an image processor"):
        PreprocessConfig.from_hf(config, model_type="llava")


@pytest.mark.parametrize(
    "key, value",
    [
        ("size", {"longest_edge": 336}),
        ("size", {"shortest_edge": 336, "longest_edge": 672}),
        ("size", {}),
        ("size", "336"),
        ("size", None),
        ("size", 0),
        ("size", 336.0),
        ("size", True),
        ("size", [1, 2, 3]),
        ("crop_size", {"shortest_edge": 336}),
        ("crop_size", {"height": 336, "width": 224}),
        ("crop_size", {"height": 336, "width": -1}),
        ("crop_size", None),
        ("do_center_crop", False),
        ("do_center_crop", "yes"),
        ("do_resize", 1),
        ("do_pad", "longest"),
        ("pad_size", {"height": 336, "width": 336}),
        ("use_square_size", True),
        ("resample", 99),
        ("resample", -1),
        ("resample", "bicubic"),
        ("resample", None),
        ("rescale_factor", "1/255"),
        ("rescale_factor", None),
        ("rescale_factor", float("nan")),
        ("image_mean", [0.5, 0.5]),
        ("image_mean", [0.5, 0.5, None]),
        ("image_mean", "0.5"),
        ("image_std", [0.5, 0.5, 0]),
        ("image_std", None),
        ("image_processor_type", "LlavaOnevisionImageProcessor"),
        ("image_processor_type", "LlavaNextImageProcessor"),
        ("image_processor_type", 7),
    ],
)
def test_value_that_is_not_supported_is_named(key, value):
    blamed = "size" if key == "do_center_crop" and value is False else key
    with pytest.raises(ConfigError, match=f"key `{blamed}`"):
        PreprocessConfig.from_hf({key: value}, model_type="llava")


@pytest.mark.parametrize(
    "key, value",
    [
        ("do_resize", False),
        ("do_resize", None),
        ("image_grid_pinpoints", []),
        ("image_grid_pinpoints", None),
        ("image_grid_pinpoints", [56, 112]),
        ("image_grid_pinpoints", [[56, 112, 168]]),
        ("image_grid_pinpoints", [[56, 0]]),
        ("image_grid_pinpoints", [[56, 111]]),
        ("image_grid_pinpoints", "(1x1),...,(6x6)"),
        ("crop_size", 28),
        ("crop_size", [56, 28]),
        ("image_processor_type", "CLIPImageProcessor"),
    ],
)
def test_value_that_llava_next_does_not_support_is_named(key, value):
    settings = NEXT | {"do_center_crop": key != "crop_size", key: value}
    with pytest.raises(ConfigError, match=f"key `{key}`"):
        PreprocessConfig.from_hf(settings, model_type="llava_next")
