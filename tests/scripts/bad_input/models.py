"""Models: folders that are incomplete, damaged, hostile or at odds with themselves."""

import json
import pickle
from pathlib import Path
from typing import Any

import transformers

from tests.scripts.bad_input.row import Hostile, Row, Spoil, cut, put


def remove(*names: str) -> Spoil:
    return lambda: [Path("model", name).unlink() for name in names]


def model_config(**changes: Any) -> Spoil:
    def spoil() -> None:
        path = Path("model/config.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def nan_weights() -> None:
    module = transformers.AutoModel.from_pretrained("model")
    module.embeddings.word_embeddings.weight.data[3, 3] = float("nan")
    module.save_pretrained("model")


def own_code() -> None:
    model_config(model_type="mine", auto_map={"AutoConfig": "mine.Mine"})()
    put("model/mine.py", "import os; os.mkdir('owned')")()


MODELS = (
    Row("a missing model folder", ("model=./no: there is no such folder; give albert, bert, distilbert, tiny",), {"model": "./no"}),
    Row("an invalid hub id", ("model=no such: there is no such folder, and", "is not a valid hub id; give the path"), {"model": "no such"}),
    Row("the hub in offline mode", ("model=lab/m: it is not on this machine", "give the path of a local model folder"), {"model": "lab/m"}),
    Row("no config.json", ("model=./model: the folder has no config.json; name a folder",), spoil=remove("config.json")),
    Row("config.json isn't JSON", ("model=./model: cannot load it: ", "It needs config.json"), spoil=cut("model/config.json")),
    Row("config.json is a list", ("model=./model: cannot load it: ", "It needs config.json"), spoil=put("model/config.json", "[]")),
    Row("an unknown architecture", ("model=./model: cannot load it: ", "It needs config.json"), spoil=model_config(model_type="none")),
    Row("text for a width", ("model=./model: cannot load it: ", "It needs config.json"), spoil=model_config(hidden_size="wide")),
    Row("a negative width", ("model=./model: cannot load it: ", "It needs config.json"), spoil=model_config(hidden_size=-16)),
    Row("a model with its own code", ("model=./model: cannot load it: ", "without custom code"), spoil=own_code),
    Row("no weights", ("model=./model: cannot load it: ", "It needs config.json, weights"), spoil=remove("model.safetensors")),
    Row("truncated weights", ("model=./model: cannot load it: SafetensorError: ", "is it complete?"), spoil=cut("model/model.safetensors")),
    Row("a hostile pickle", ("model=./model: cannot load it: UnpicklingError: ",), spoil=lambda: (remove("model.safetensors")(), put("model/pytorch_model.bin", pickle.dumps(Hostile(), 2))())),
    Row("weights that are not finite", ("model=./model: ", "word_embeddings.weight contains NaN or infinite values; restore it"), spoil=nan_weights),
    Row("no tokenizer", ("model=./model: its tokenizer has no vocabulary; save the tokenizer's files",), spoil=remove("tokenizer.json", "tokenizer_config.json")),
    Row("a truncated tokenizer", ("model=./model: cannot load it: ", "a tokenizer"), spoil=cut("model/tokenizer.json")),
    Row("a tokenizer of another model", ("model=./model: it can't take 16 tokens of its tokenizer's vocabulary", "check that model and tokenizer belong together"), spoil=lambda: transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained("model", vocab_size=9)).save_pretrained("model")),
)  # fmt: skip
