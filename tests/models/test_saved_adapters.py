"""Adapters as peft loads them, beside what aggregation adds to the base."""

import dataclasses
from pathlib import Path

import pytest
import torch
import transformers

from scaling_fl.config.schema import Config
from scaling_fl.models import adapters
from tests import builders
from tests.models.test_adapters import CUT, EXACT, freeze, logits, trained


@pytest.mark.parametrize("config", [EXACT, CUT], ids=["whole", "cut"])
@pytest.mark.parametrize("alpha", [None, 4.5])
def test_the_sum_of_both_is_saved_with_the_scale_of_each(tmp_path: Path, config: Config, alpha: float | None) -> None:
    """The adapters count twice, or 1.5 times as alpha / rank says; what is added to the base counts once."""
    from peft import PeftModel

    builders.bert().save_pretrained(tmp_path / "base")
    module = trained(freeze(builders.bert(), dataclasses.replace(config, lora_alpha=alpha)))
    adapters.save(module, tmp_path / "adapter")
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    adapted = PeftModel.from_pretrained(plain, tmp_path / "adapter")
    torch.testing.assert_close(logits(adapted), logits(module), rtol=1e-5, atol=1e-6)
