"""The word-level CLIP tokenizer and the small CLIP text encoders that the shipped pipelines use, built offline."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from difalign.embedded.scenes import COLORS, NUMBERS, PLACES, PLURALS, RELATIONS, SHAPES

NULL_WIDTH = 128  # both CLIP encoders side by side
MAX_TOKENS = 12  # begin + eight words + end, and two to spare
_BOS, _EOS = "<|startoftext|>", "<|endoftext|>"


def grammar_words() -> list[str]:
    """Every word a caption can hold."""
    relation_words = {word for relation in RELATIONS for word in relation.split()}
    words = {*COLORS, *SHAPES, *PLURALS.values(), *NUMBERS, *PLACES, *relation_words, "a", "at", "the", "and"}
    return sorted(words)


def build_tokenizer() -> CLIPTokenizer:
    """A byte-level CLIP BPE in which each word of the grammar is one token; any other text still encodes."""
    bpe = Tokenizer(models.BPE(unk_token=_EOS, end_of_word_suffix="</w>", fuse_unk=False))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    alphabet = pre_tokenizers.ByteLevel.alphabet()  # so that any UTF-8 text falls apart into known bytes
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=sorted(alphabet),
        end_of_word_suffix="</w>",
        special_tokens=[],
    )
    bpe.train_from_iterator(grammar_words(), trainer)
    with tempfile.TemporaryDirectory() as folder:
        bpe.model.save(folder)
        merges = [
            tuple(line.split())
            for line in (Path(folder) / "merges.txt").read_text(encoding="utf-8").splitlines()
            if line and not line.startswith("#")
        ]
    learned = bpe.get_vocab()
    pieces = sorted(alphabet) + sorted(f"{symbol}</w>" for symbol in alphabet)
    pieces += [token for token in sorted(learned, key=learned.__getitem__) if token not in set(pieces)]
    vocab = {token: index for index, token in enumerate([*pieces, _BOS, _EOS])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """An untrained two-layer CLIP text encoder, 64 wide, with a projection."""
    return CLIPTextModelWithProjection(_text_config(tokenizer))


def build_plain_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The same without a projection."""
    return CLIPTextModel(_text_config(tokenizer))


def _text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        projection_dim=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def token_ids(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Padded token ids as the diffusers pipelines make them, [N, MAX_TOKENS] int64."""
    batch = tokenizer(list(captions), padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    return torch.as_tensor(batch.input_ids)


def build_null_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer for the placeholder encoder: any text is nothing but its end, so none is ever cut off."""
    tokenizer = Tokenizer(models.Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)], unk_id=2))
    tokenizer.normalizer = normalizers.Replace(Regex(r"[\s\S]+"), "")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


@torch.no_grad()
def build_null_encoder() -> T5EncoderModel:
    """A placeholder T5 encoder whose every output is exactly zero, since its final norm is.

    ``StableDiffusion3Pipeline`` can run without a T5 encoder, replacing its output by zeros, but
    ``DiffusionPipeline.from_pretrained(folder)`` cannot load such a folder without being told so in code. With this
    placeholder the folder loads by itself and gives the same zeros.
    """
    encoder = T5EncoderModel(T5Config(vocab_size=8, d_model=NULL_WIDTH, d_kv=8, d_ff=8, num_layers=1, num_heads=1))
    encoder.encoder.final_layer_norm.weight.zero_()
    return encoder.eval()
