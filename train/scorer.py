"""`python -m train scorer --out FOLDER`: a token scorer for a model that is left as it is.

The scorer is distilled from the model's own decoder (`train/teacher.py`): of every patch it learns, from what the
projector takes of it, how much the answers to all questions about the picture attend to it. A budget `learned:0.2` then
needs neither the decoder nor the question to choose. Features and targets of all pictures are computed once and kept in
memory in half precision; the loss is the Kullback-Leibler divergence between the target and the softmax of the scores
over the real patches of a picture.

Without --pictures the pictures and questions are drawn (`vila_jax/scenes`), of which `nano` knows the answers; with them,
every picture is asked every line of --prompts, and attention is read while the model says its own greedy answer.
"""

import argparse
import dataclasses
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float
from PIL import Image
from rich.console import Console

from train.optim import decays
from train.scene_batches import choose_questions
from train.teacher import attended, pack
from vila_jax import assets
from vila_jax.errors import ConfigError, VilaError
from vila_jax.hf.add_scorer import add_scorer
from vila_jax.infer.layout import Request
from vila_jax.model import Model, from_pretrained
from vila_jax.nn.params import dotted
from vila_jax.nn.scorer import Scorer
from vila_jax.scenes import Split, draw_scene
from vila_jax.text.slots import expand
from vila_jax.vision.open import open_image

console = Console(stderr=True, markup=False, highlight=False)
