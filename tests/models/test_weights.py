"""The size of weights on this machine; `sweep/test_slots.py` has what follows from it."""

from pathlib import Path

import pytest

from scaling_fl.models.weights import weights_size


def test_weights_in_the_hubs_cache_count_by_either_name_of_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    cached = {"bert-base-cased": ("pytorch_model.bin", 700), "lab/model": ("model.safetensors", 90)}
    for source, (name, size) in cached.items():
        of_the_hub = tmp_path / "cache" / f"models--{source.replace('/', '--')}"
        (of_the_hub / "refs").mkdir(parents=True)
        (of_the_hub / "refs" / "main").write_text("c0ffee")
        (of_the_hub / "snapshots" / "c0ffee").mkdir(parents=True)
        (of_the_hub / "snapshots" / "c0ffee" / "config.json").write_text("{}")
        (of_the_hub / "snapshots" / "c0ffee" / name).write_bytes(b"x" * size)
    sizes = [weights_size(model) for model in ("bert", "./nothing/bert-base-cased", "lab/model", "albert")]
    assert sizes == [700, None, 90, None]


def test_weights_in_the_home_folder_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert weights_size("~/model") is None
    (tmp_path / "model" / "model.safetensors").write_bytes(b"x" * 300)
    assert weights_size("~/model") == 300
