"""A whole answer in a fresh process, which never imports torch or TensorFlow although torch is installed."""

import importlib.util
import json
import os
import subprocess
import sys

SCRIPT = """
import json, sys

import vila_jax

folder, image = sys.argv[1:]
model = vila_jax.from_pretrained(folder, dtype="float32", budget="hired:16")
messages = [{"role": "user", "content": [{"type": "image", "path": image}, {"type": "text", "text": "what?"}]}]
answer = model.generate(messages=messages, max_new_tokens=2, ignore_eos=True)
found = sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "tensorflow", "transformers"})
print(json.dumps({"tokens": len(answer.token_ids), "kept": answer.usage.visual_tokens_kept, "found": found}))
"""


def test_an_answer_needs_neither_torch_nor_tensorflow(golden):
    assert importlib.util.find_spec("torch") is not None, "the proof needs torch to be installed"
    folder = golden / "hired_e2e"
    arguments = [str(folder / "llava15_seed11"), str(folder / "llava15_china.png")]
    environment = {**os.environ, "XLA_FLAGS": ""}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {"tokens": 2, "kept": 16, "found": []}


def test_object_stores_are_not_read_through_tensorflow():
    code = "import os, vila_jax; print(os.environ['EPATH_USE_TF'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "false"
