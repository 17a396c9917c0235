"""A BERT tokenizer of a few words, made in memory."""

from __future__ import annotations

from transformers import BertTokenizer

from tests.tiny_models import WORDS

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def bert_tokenizer() -> BertTokenizer:
    """It knows the words of the tiny models and, in pieces, everything in small letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*_SPECIAL, *WORDS, *letters[1:], *(f"##{letter}" for letter in letters)]
    return BertTokenizer(vocab={token: number for number, token in enumerate(tokens)})
