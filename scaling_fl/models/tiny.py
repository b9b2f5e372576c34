"""The demo's model: an untrained BERT, or a Llama to predict tokens, and a vocabulary counted from the texts."""

from collections import Counter
from typing import Any

import transformers
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers import models as tokenizer_models

VOCABULARY_SIZE = 4000
_SIZES = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def tiny_config(vocab_size: int, labels: dict[str, Any]) -> Any:
    """Return the configuration: two layers of width 128, 1 M parameters."""
    return transformers.BertConfig(
        vocab_size=vocab_size,
        **_SIZES,
        **labels,
    )


def tiny_decoder(vocab_size: int) -> Any:
    """Return the configuration of a language model: two layers of width 128, 1 M parameters."""
    return transformers.LlamaConfig(
        vocab_size=vocab_size,
        **_SIZES,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )


def tiny_tokenizer(texts: list[str]) -> Any:
    """Return a WordPiece tokenizer whose pieces are all characters and the most frequent words of `texts`.

    They are counted here because the trainer of the tokenizers library is not deterministic.
    """
    splitter = Tokenizer(tokenizer_models.WordPiece(vocab={"[UNK]": 0}, unk_token="[UNK]"))
    splitter.normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in texts:
        normalised = splitter.normalizer.normalize_str(text)
        words.update(word for word, _ in splitter.pre_tokenizer.pre_tokenize_str(normalised))
    characters = sorted({character for word in words for character in word})
    frequent = sorted(words, key=lambda word: (-words[word], word))
    pieces = dict.fromkeys([*SPECIAL_TOKENS, *characters, *(f"##{c}" for c in characters), *frequent])
    vocabulary = {piece: number for number, piece in enumerate(list(pieces)[:VOCABULARY_SIZE])}

    tokenizer = Tokenizer(tokenizer_models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = splitter.normalizer, splitter.pre_tokenizer
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=512,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        eos_token="[SEP]",
        mask_token="[MASK]",
        split_special_tokens=True,  # "[SEP]" in a text is text
    )
