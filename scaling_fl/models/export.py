"""The trained model as a Hugging Face folder, and the check before training that this folder can be written and read."""

import contextlib
import copy
import heapq
import json
import os
import shutil
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig

from scaling_fl.errors import UserError
from scaling_fl.models import adapters, memory
from scaling_fl.models.flat_parameters import Layout
from scaling_fl.models.loading import LoadedModel, build, predicts_tokens, rebuild_model

_CHECKED = 100  # texts whose tokens are compared
_PRIVATE = ("is_local", "local_files_only", "name_or_path")  # where the base model was, in tokenizer_config.json


@contextlib.contextmanager
def export_errors(model: str) -> Iterator[None]:
    """Turn any error into one line: a model that can't be saved or loaded is refused before training."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the library's classes raise anything
        reason = textwrap.shorten(str(error), 250, placeholder=" …")
        raise UserError(
            f"model={model}: it can't be saved and loaded again ({type(error).__name__}: {reason}); mend its config.json "
            "and tokenizer files, or use another model"
        ) from error


def save_tokenizer(loaded: LoadedModel, folder: Path, max_seq_len: int, input_names: Sequence[str]) -> list[Path]:
    """Save the tokenizer so that it yields the tensors `input_names`, truncated to `max_seq_len` tokens as in training.

    Returns its files. They name no path of this machine.
    """
    tokenizer = loaded.tokenizer
    files = [path for path in map(Path, tokenizer.save_pretrained(folder)) if path.exists()]
    path = folder / "tokenizer_config.json"
    settings = {
        key: value
        for key, value in json.loads(path.read_text()).items()
        if key not in _PRIVATE and not (isinstance(value, str) and os.path.isabs(value) and os.path.isfile(value))
    }
    # The library saves the side only if the tokenizer was loaded with one.
    settings |= {
        "model_max_length": max_seq_len, "model_input_names": list(input_names), "padding_side": tokenizer.padding_side,
    }  # fmt: skip
    if predicts_tokens(loaded.module) and tokenizer.chat_template:  # the template writes special tokens into the text
        settings["split_special_tokens"] = False
    path.write_text(json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    return files


def as_rebuilt(loaded: LoadedModel, folder: Path) -> LoadedModel:
    """Replace the loaded module by the one that workers rebuild from `folder`, with the loaded one's values.

    The positions of all tensors follow from the rebuilt module alone. The loaded one may have others: RoFormer's table
    of sines is frozen when it is built, and trainable after loading. The values are shared, not copied. Raises
    `ValueError` if the two hold different tensors.
    """
    module = rebuild_model(folder)
    layout, tensors, values = Layout(module), _tensors(module), _tensors(loaded.module)
    expected, found = ({name: t.shape for name, t in m.state_dict().items()} for m in (loaded.module, module))
    if expected != found:
        differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise ValueError(f"rebuilt from config.json, it differs in {', '.join(differing[:5])}")
    for name in (*(entry.name for entry in layout.entries), *layout.integer_names):
        tensors[name].data = values[name].data
    return loaded._replace(module=module)


def write_folder(module: Any, prepared: Path, target: Path, merge: bool = True, dtype: str = "float32") -> None:
    """Write the module's weights and configuration to the folder `target`, beside the tokenizer of `prepared`.

    Adapters stand alone in the folder `adapter` within. They are also merged into the weights, in float32, and saved as
    `dtype`; if not `merge`, there are no weights.
    """
    shutil.copytree(prepared, target, dirs_exist_ok=True)
    if adapters.has(module):
        adapters.save(module, target / "adapter")
        if not merge:
            return
        config = copy.deepcopy(module.config)
        if adapters.on_output(module):
            config.tie_word_embeddings = False
        plain = build(type(module), config)
        plain.load_state_dict(adapters.merged(module), assign=True)
        plain.tie_weights()
        module = plain.to(getattr(torch, dtype))
    if not predicts_tokens(module):
        module.save_pretrained(target)
        return
    if (target / "generation_config.json").exists():  # the base model's
        module.generation_config = GenerationConfig.from_pretrained(target)
    module.config.use_cache = True  # for generation; training leaves it out
    try:
        module.save_pretrained(target)
    finally:
        module.config.use_cache = False


def check_export(
    loaded: LoadedModel, prepared: Path, texts: Sequence[str], pairs: Sequence[str] | None, merge: bool = True
) -> None:
    """Export the model once and load it back: the tensors' names, tokens and logits must stay the same.

    `loaded` is as workers rebuild it, see `as_rebuilt`. Raises `ValueError`, or what the library raises. Takes about two
    seconds for 110 M parameters. `merge`: whether the job will merge adapters into the weights.
    """
    two_copies = merge and adapters.has(loaded.module) and loaded.dtype != "float32"
    memory.check(  # at the end, merged weights in float32 and as they are saved; here, what is loaded again
        "export: to write the model and load it again, which is tried before training, takes",
        (6 if two_copies else 4) * sum(parameter.numel() for parameter in loaded.module.parameters()),
        "use a smaller model, or a machine with more memory",
    )
    config = json.loads((prepared / "tokenizer_config.json").read_text())
    names, max_length = config["model_input_names"], config["model_max_length"]
    with tempfile.TemporaryDirectory(dir=prepared.parent) as folder:
        write_folder(loaded.module, prepared, Path(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        module, report = type(loaded.module).from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    if differing := sorted({*report["missing_keys"], *report["unexpected_keys"]}):
        raise ValueError(f"it differs in {', '.join(differing[:5])}")

    longest = heapq.nlargest(2, range(len(texts)), key=lambda row: len(texts[row]))
    rows = [*longest, *range(min(_CHECKED, len(texts)))]
    chosen = [texts[row] for row in rows], None if pairs is None else [pairs[row] for row in rows]
    trained_on = loaded.tokenizer(
        *chosen, truncation=True, max_length=max_length,
        return_token_type_ids="token_type_ids" in names, return_attention_mask="attention_mask" in names,
    )  # fmt: skip
    as_text = {"split_special_tokens": True} if predicts_tokens(loaded.module) else {}  # as texts are read in training
    exported = tokenizer(*chosen, truncation=True, **as_text)
    if dict(exported) != dict(trained_on):
        raise ValueError("its tokenizer gives other tokens")

    batch = tokenizer.pad({name: exported[name][:2] for name in names}, return_tensors="pt")
    expected, found = (_logits(either, batch) for either in (loaded.module, module))
    if not torch.allclose(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True):
        raise ValueError("it gives other logits")


def _tensors(module: Any) -> dict[str, torch.Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


def _logits(module: Any, batch: Any) -> torch.Tensor:
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)  # some architectures draw random projections
        logits: torch.Tensor = module.eval()(**batch).logits
    return logits
