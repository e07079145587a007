"""`vila-jax convert`: what it prints, and with what code it ends."""

import json
import pathlib
import shutil

import pytest

from vila_jax.cli.convert import size

V1 = pathlib.Path(__file__).parents[1] / "golden" / "vila" / "checkpoints" / "v1_single_folder"


def test_an_object_about_what_was_written(vila_jax_cli, tmp_path):
    code, out, err = vila_jax_cli("convert", V1, tmp_path / "ours", "--to", "hf", "--max-shard-size", "100KB", "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert facts["folder"] == str(tmp_path / "ours")
    assert (facts["to"], facts["tensors"], facts["image_token_id"], facts["style"]) == ("hf", 80, 400, "vicuna_v1")
    assert (facts["files_reused"], facts["weights_merged"]) == ([], 0)
    assert sorted(facts["files"]) == sorted(path.name for path in (tmp_path / "ours").glob("*.safetensors"))
    code, out, _ = vila_jax_cli("inspect", tmp_path / "ours", "--json")
    assert code == 0
    assert json.loads(out)["weights"]["usable"]


def test_a_line_about_what_was_written(vila_jax_cli, tmp_path):
    code, out, err = vila_jax_cli("convert", V1, tmp_path / "ours", "--to", "vila", "--dtype", "float32")
    assert (code, err) == (0, "")
    assert out.startswith(f"{tmp_path / 'ours'}: 80 tensors, ")
    assert out.endswith("3 files\n")
    code, out, err = vila_jax_cli("convert", V1, tmp_path / "llava", "--to", "hf", "--style", "llama_2")
    assert (code, err) == (0, "")
    assert out.endswith("1 file · image token 400 · chat template: llama_2\n")


def test_a_folder_that_is_there(vila_jax_cli, tmp_path):
    arguments = ("convert", V1, tmp_path / "ours", "--to", "llava")
    assert vila_jax_cli(*arguments)[0] == 0
    code, out, err = vila_jax_cli(*arguments)
    assert (code, out) == (4, "")
    assert "a checkpoint already" in err
    assert vila_jax_cli(*arguments, "--force")[0] == 0


def test_what_has_no_place(vila_jax_cli, tmp_path):
    code, _, err = vila_jax_cli("convert", V1.parent / "vila15_llama_siglip", tmp_path / "ours", "--to", "hf", "--json")
    assert code == 3
    assert "has no place for a projector that merges windows" in err
    assert "Use `--to vila`." in err


def test_a_place_that_cannot_be_written(vila_jax_cli, tmp_path):
    (tmp_path / "file").write_text("x")
    for place, reason in (("file", "this is a file"), ("file/ours", "cannot be written")):
        code, _, err = vila_jax_cli("convert", V1, tmp_path / place, "--to", "hf")
        assert code == 4 and reason in err and "Choose" in err and "Make room" not in err


def test_the_source_is_never_written_over(vila_jax_cli, tmp_path):
    source = tmp_path / "models" / "v1"
    shutil.copytree(V1, source)
    for target in (source, tmp_path / "models"):
        code, _, err = vila_jax_cli("convert", source, target, "--to", "llava", "--force")
        assert code == 4 and "cannot be written over what it is made from" in err
    code, _, err = vila_jax_cli("convert", V1, tmp_path / "models", "--to", "hf", "--lora", source)
    assert code == 4 and "made from" in err


def test_the_era_is_of_the_chat_template(vila_jax_cli, tmp_path):
    code, _, err = vila_jax_cli("convert", V1, tmp_path / "ours", "--to", "vila", "--era", "nvila")
    assert code == 3 and "nothing else" in err
    for era in ("v1", "nvila"):
        assert vila_jax_cli("convert", V1, tmp_path / era, "--to", "hf", "--era", era)[0] == 0
    templates = [(tmp_path / era / "chat_template.jinja").read_text() for era in ("v1", "nvila")]
    assert ["<s> \\n" in template for template in templates] == [False, True]


def test_wrong_use(vila_jax_cli, tmp_path):
    assert vila_jax_cli("convert", V1, tmp_path / "ours")[0] == 2
    assert vila_jax_cli("convert", V1, tmp_path / "ours", "--to", "hf", "--max-shard-size", "0")[0] == 2
    assert vila_jax_cli("convert", tmp_path / "nowhere", tmp_path / "ours", "--to", "hf")[0] == 8
    assert vila_jax_cli("convert", V1, tmp_path / "ours", "--to", "hf", "--lora", tmp_path)[0] == 3


@pytest.mark.parametrize(
    ("text", "expected"), [("1000", 1000), ("5GB", 5 * 10**9), ("1.5 MiB", 3 * 2**19), ("2kib", 2048)]
)
def test_sizes(text, expected):
    assert size(text) == expected
