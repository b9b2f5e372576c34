from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

from scaling_fl import hf_hub
from scaling_fl.errors import UserError


def answer(monkeypatch: pytest.MonkeyPatch, method: str, error: Exception | None) -> list[str]:
    asked: list[str] = []

    def info(self: Any, name: str, timeout: float) -> None:
        asked.append(name)
        if error is not None:
            raise error

    monkeypatch.setattr(huggingface_hub.HfApi, method, info)
    return asked


def test_models_and_data_sets_are_looked_up_by_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    models, datasets = answer(monkeypatch, "model_info", None), answer(monkeypatch, "dataset_info", None)
    hf_hub.check_exists("model", "lab/m", "model=m", "")
    hf_hub.check_exists("dataset", "lab/d", "dataset=lab/d", "")
    assert (models, datasets) == (["lab/m"], ["lab/d"])


def test_an_unknown_name_is_distinguished_from_an_unreachable_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
    answer(monkeypatch, "model_info", missing)
    with pytest.raises(
        UserError, match=r"model=x: the hub has no model lab/x that you can access; .* HF_TOKEN"
    ) as error:
        hf_hub.check_exists("model", "lab/x", "model=x", "take another")
    assert not isinstance(error.value, hf_hub.Unreachable)
    answer(monkeypatch, "model_info", OSError("Name or service not known"))
    with pytest.raises(hf_hub.Unreachable, match=r"the hub can't be reached \(OSError\); take another"):
        hf_hub.check_exists("model", "lab/x", "model=x", "take another")
    answer(monkeypatch, "model_info", OfflineModeIsEnabled("no"))
    with pytest.raises(hf_hub.Unreachable, match="HF_HUB_OFFLINE forbids asking the hub; take another"):
        hf_hub.check_exists("model", "lab/x", "model=x", "take another")
