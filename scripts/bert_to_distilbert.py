#!/usr/bin/env python
"""Write a pre-trained BERT as a DistilBERT with the same weights.

./run-local.sh scripts/bert_to_distilbert.py sentence-transformers/all-MiniLM-L6-v2 models/minilm-as-distilbert

The encoders compute the same on single texts. The classifiers differ, as BERT's and DistilBERT's do: BERT has a pre-trained pooler and
one new layer, DistilBERT two new layers.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from scaling_fl.errors import UserError
from scaling_fl.text import for_stderr

TOLERANCE = 1e-5  # of the hidden states
LAYERS = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}
FIXED = {  # what DistilBERT can't do otherwise
    "model_type": "bert",
    "layer_norm_eps": 1e-12,
    "position_embedding_type": "absolute",
    "is_decoder": False,
}


def main(argv: list[str]) -> None:
    """Run the command. Exits with status 1 and one line if the input can't be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a hub id or a local folder")
    parser.add_argument("target", type=Path, help="a new folder")
    options = parser.parse_args(argv)
    try:
        difference = convert(options.source, options.target)
    except UserError as error:
        sys.exit(for_stderr(f"Refused: {error}"))
    print(f"{options.target}: the hidden states differ by at most {difference:.1e}")


def convert(source: str, target: Path) -> float:
    """Write the BERT at `source` to `target` as a DistilBERT. Returns the largest difference of their hidden states."""
    import transformers

    from scaling_fl.models import export, loading

    loading.silence_library()
    if target.exists():
        raise UserError(f"{target} exists; name a new folder")
    try:
        config = transformers.AutoConfig.from_pretrained(source)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: no model with a tokenizer could be loaded: {error}") from error
    for name, expected in FIXED.items():
        if (found := getattr(config, name, expected)) != expected:
            raise UserError(
                f"{source}: {name} is {found!r}, but DistilBERT only has {expected!r}; choose another model"
            )
    bert = transformers.AutoModel.from_pretrained(source, add_pooling_layer=False, attn_implementation="eager").eval()
    distilbert = as_distilbert(bert)
    difference = largest_difference(bert, distilbert)
    if not difference <= TOLERANCE:
        raise UserError(
            f"{source}: the hidden states differ by {difference:.1e}, more than {TOLERANCE}; please report it"
        )
    distilbert.save_pretrained(target)
    converted = loading.LoadedModel(distilbert, tokenizer, [])
    export.save_tokenizer(converted, target, tokenizer.model_max_length, loading.input_names(distilbert, pairs=True))
    return difference


def as_distilbert(bert: Any) -> Any:
    """A DistilBertModel with the weights of a BertModel. Token type 0 becomes part of the position embeddings."""
    import transformers

    config = bert.config
    distilbert = transformers.DistilBertModel(
        transformers.DistilBertConfig(
            vocab_size=config.vocab_size,
            max_position_embeddings=config.max_position_embeddings,
            dim=config.hidden_size,
            hidden_dim=config.intermediate_size,
            n_layers=config.num_hidden_layers,
            n_heads=config.num_attention_heads,
            activation=config.hidden_act,
            dropout=config.hidden_dropout_prob,
            attention_dropout=config.attention_probs_dropout_prob,
            initializer_range=config.initializer_range,
            pad_token_id=config.pad_token_id,
            attn_implementation="eager",
        )
    )
    theirs = bert.state_dict()
    weights = {
        "embeddings.word_embeddings.weight": theirs["embeddings.word_embeddings.weight"],
        "embeddings.position_embeddings.weight": theirs["embeddings.position_embeddings.weight"]
        + theirs["embeddings.token_type_embeddings.weight"][0],
    }
    for kind in ("weight", "bias"):
        weights[f"embeddings.LayerNorm.{kind}"] = theirs[f"embeddings.LayerNorm.{kind}"]
        for layer in range(config.num_hidden_layers):
            for old, new in LAYERS.items():
                weights[f"transformer.layer.{layer}.{new}.{kind}"] = theirs[f"encoder.layer.{layer}.{old}.{kind}"]
    distilbert.load_state_dict(weights)
    return distilbert.eval()


def largest_difference(bert: Any, distilbert: Any) -> float:
    """The largest absolute difference of the hidden states of all layers, on random texts of unequal lengths."""
    import torch

    config = bert.config
    length = min(config.max_position_embeddings, 128)
    tokens = torch.randint(config.vocab_size, (4, length), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(length) < torch.tensor([[length], [length // 2], [2], [1]])).long()
    with torch.no_grad():
        pairs = zip(
            *(m(tokens, attention_mask=mask, output_hidden_states=True).hidden_states for m in (bert, distilbert)),
            strict=True,
        )
        return max(float((one - other)[mask.bool()].abs().max()) for one, other in pairs)


if __name__ == "__main__":
    main(sys.argv[1:])
