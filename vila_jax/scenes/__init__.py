"""A small world of pictures and questions, drawn on the fly from a seed, on which the embedded model is trained."""

from vila_jax.scenes.drawing import draw_scene
from vila_jax.scenes.labels import patch_labels, presence
from vila_jax.scenes.questions import VOCABULARY, exact_match, tokenize
from vila_jax.scenes.world import (
    COARSE,
    COLOR_LABELS,
    CONTENT_LABELS,
    EASY,
    FINE,
    FULL,
    KINDS,
    MEDIUM,
    NUM_COLORS,
    NUM_CONTENTS,
    READING,
    SINGLE,
    Difficulty,
    Question,
    Scene,
    SceneObject,
    blank,
)

__all__ = [
    "COARSE",
    "COLOR_LABELS",
    "CONTENT_LABELS",
    "EASY",
    "FINE",
    "FULL",
    "KINDS",
    "MEDIUM",
    "NUM_COLORS",
    "NUM_CONTENTS",
    "READING",
    "SINGLE",
    "VOCABULARY",
    "Difficulty",
    "Question",
    "Scene",
    "SceneObject",
    "blank",
    "draw_scene",
    "exact_match",
    "patch_labels",
    "presence",
    "tokenize",
]
