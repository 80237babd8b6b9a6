"""Three tokenizers of the kinds that matter, trained in a moment on a few sentences.

* ``bytes``: byte-level BPE without special tokens (GPT-2);
* ``bytes_bos``: the same with a BOS that the template adds (Llama 3);
* ``pieces``: BPE over SentencePiece's marks, byte fallback and a BOS (Llama 2, Mistral).
"""

from __future__ import annotations

from functools import cache

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

KINDS = ("bytes", "bytes_bos", "pieces")
SUBJECTS = ["Danielle Darrieux", "Jean {Gabin}", '"Al"', "東京", "Édith"]
OBJECTS = ["English", "French", "New York", "Tokyo", "日本", "München"]
TEXT = [
    f"The mother tongue of {subject} is {thing}. {subject}'s home, said {subject}, is {thing}!"
    for subject in SUBJECTS
    for thing in OBJECTS
] * 3


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A fresh tokenizer of one of the kinds; do not change it without putting it back."""
    return _pieces() if kind == "pieces" else _bytes(bos=kind == "bytes_bos")


def _bytes(bos: bool) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>", "<|begin|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXT, trainer)
    if bos:
        begin = ("<|begin|>", backend.token_to_id("<|begin|>"))
        backend.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[begin]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", pad_token="<|end|>", bos_token="<|begin|>"
    )


def _pieces() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, show_progress=False, limit_alphabet=60
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend.train_from_iterator(TEXT, trainer)
    backend.pre_tokenizer = None
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
    )
