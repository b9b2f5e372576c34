"""A GGUF file becomes a folder with the same weights and the same tokens."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from tests.conftest import ROOT
from tests.scripts import gguf_file


def convert(file: Path, folder: Path, without: str = "") -> "subprocess.CompletedProcess[str]":
    """Run the script as users do; `without` is a package that Python then doesn't find."""
    argv = [sys.executable, str(ROOT / "scripts" / "convert_gguf.py"), str(file), str(folder)]
    if without:
        hidden = f"import runpy, sys; sys.argv = sys.argv[1:]; sys.modules[{without!r}] = None; "
        argv[1:1] = ["-c", hidden + "runpy.run_path(sys.argv[0], run_name='__main__')"]
    return subprocess.run(
        argv, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.parametrize(("tied", "quantised"), [(False, True), (True, False)])
def test_the_folder_has_the_weights_and_the_tokens_of_the_file(tmp_path: Path, tied: bool, quantised: bool) -> None:
    """The weights are exact: those in 8 bits were chosen so. Llama's queries and keys are in another order in the file."""
    words = gguf_file.tokenizer()
    model = gguf_file.llama(words.get_vocab_size(), tied)
    gguf_file.write(tmp_path / "model.gguf", model, words, quantised)
    done = convert(tmp_path / "model.gguf", tmp_path / "new" / "folder")
    assert done.returncode == 0, done.stderr

    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "new" / "folder", dtype="auto")
    expected = model.state_dict()
    assert found.state_dict().keys() == expected.keys()
    for name, weight in found.state_dict().items():
        assert weight.dtype == expected[name].dtype
        assert weight.equal(expected[name]), name
    for key in ("head_dim", "num_key_value_heads", "max_position_embeddings", "rope_parameters", "tie_word_embeddings"):
        assert getattr(found.config, key) == getattr(model.config, key)
    assert found.config.rms_norm_eps == pytest.approx(1e-3)
    assert not hasattr(found.config, "quantization_config")

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "new" / "folder")
    for text in gguf_file.TEXTS:
        assert tokenizer(text).input_ids == words.encode(text).ids
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer(gguf_file.TEXTS[0]).input_ids) < len(gguf_file.TEXTS[0]), "merges were used"
    chat = [{"role": "user", "content": "a stone"}]
    (start, *between, end) = tokenizer.apply_chat_template(chat, return_dict=False)
    assert tokenizer.convert_ids_to_tokens([start, end]) == ["<|start|>", "<|end|>"]
    assert between == words.encode("user\na stone").ids
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|start|>", "<|end|>", "<|end|>")


@pytest.mark.parametrize(
    ("name", "folder", "without", "message"),
    [
        ("none.gguf", "new", "", "none.gguf: there is no such file; name a GGUF file"),
        (".", "new", "", ": there is no such file; name a GGUF file"),
        ("cut.gguf", ".", "", ": it exists; name a new folder"),
        ("cut.gguf", "new", "gguf", "the package gguf is needed: ./run-local.sh --no-docker -m pip install gguf"),
        ("text.gguf", "new", "", "text.gguf: cannot load it: ValueError: "),
        ("cut.gguf", "new", "", "cut.gguf: cannot load it: "),
        ("other.gguf", "new", "", "other.gguf: cannot load it: ValueError: "),
    ],
)
def test_what_cannot_be_converted_is_refused(
    tmp_path: Path, name: str, folder: str, without: str, message: str
) -> None:
    words = gguf_file.tokenizer()
    gguf_file.write(tmp_path / "whole.gguf", gguf_file.llama(words.get_vocab_size(), tied=True), words)
    whole = (tmp_path / "whole.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "other.gguf").write_bytes(whole.replace(b"llama", b"camel"))
    (tmp_path / "text.gguf").write_text("river stone")
    done = convert(tmp_path / name, tmp_path / folder, without)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()
