"""nano, the embedded model: a LLaVA-NeXT in miniature, trained from nothing on drawn scenes.

    python -m train configs/nano.py --out runs/nano

Tiles of 48 x 48 pixels in patches of 8: a 96 x 96 picture is an overview of 36 patches and a 2 x 2 grid of tiles, 192
visual tokens with the newlines. Two stages: the tower is warmed up on dense labels (what each patch shows), then the
whole model learns to answer questions.
"""

from train.config import Run, Stage

TILE = 48

MODEL = {
    "architectures": ["LlavaNextForConditionalGeneration"],
    "model_type": "llava_next",
    "image_grid_pinpoints": [[48, 96], [96, 48], [96, 96], [144, 48], [48, 144]],
    "projector_hidden_act": "gelu",
    "tie_word_embeddings": False,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "image_size": TILE,
        "patch_size": 8,
        "projection_dim": 128,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
    "text_config": {
        "model_type": "llama",
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
}

PREPROCESSOR = {
    "image_processor_type": "LlavaNextImageProcessor",
    "processor_class": "LlavaNextProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": TILE},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": TILE, "width": TILE},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "do_pad": True,
    "image_grid_pinpoints": MODEL["image_grid_pinpoints"],
}

RUN = Run(
    name="nano",
    model=MODEL,
    preprocessor=PREPROCESSOR,
    seed=0,
    stages=(
        Stage("tower", kind="tower", steps=1200, scenes=48, learning_rate=2e-3, warmup=100),
        Stage(
            "glimpses",
            kind="answers",
            steps=1600,
            scenes=32,
            questions=8,
            thinned=1.0,
            shown=(0.1, 0.5),
            row_length=192,
            optimizer="muon",
            label_weight=0.25,
            learning_rate=2e-3,
            warmup=100,
        ),
        Stage(
            "answers",
            kind="answers",
            steps=1200,
            scenes=32,
            questions=8,
            thinned=0.5,
            optimizer="muon",
            label_weight=0.25,
            learning_rate=1.5e-3,
            warmup=100,
        ),
    ),
)
