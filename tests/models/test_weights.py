"""The size of weights on this machine; `sweep/test_slots.py` has what follows from it."""

from pathlib import Path

import huggingface_hub
import pytest

from scaling_fl.models.weights import weights_size


def test_weights_in_the_hubs_cache_count_by_either_name_of_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cached = {("bert-base-cased", "pytorch_model.bin"): 700, ("lab/model", "model.safetensors"): 90}
    for (source, _), size in cached.items():
        (tmp_path / source.replace("/", "-")).write_bytes(b"x" * size)

    def try_to_load_from_cache(source: str, name: str) -> str | None:
        return str(tmp_path / source.replace("/", "-")) if (source, name) in cached else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", try_to_load_from_cache)
    sizes = [weights_size(model) for model in ("bert", "./nothing/bert-base-cased", "lab/model", "albert")]
    assert sizes == [700, None, 90, None]


def test_weights_in_the_home_folder_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert weights_size("~/model") is None
    (tmp_path / "model" / "model.safetensors").write_bytes(b"x" * 300)
    assert weights_size("~/model") == 300
