"""Small tokenizers of the kinds that real models have, made here: no download, no model."""

from __future__ import annotations

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

WORDS = ["once upon a time there was a red ball", "the cat is here", "\u4e2d\u6587 ok"] * 4
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<image>"]


def byte_level() -> PreTrainedTokenizerFast:
    """GPT-2's kind: bytes as letters, spaces at the beginning of words."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(WORDS, trainer)
    return _finished(core)


def llama(legacy: bool = False) -> PreTrainedTokenizerFast:
    """Llama's kind: a space before the first word that decoding takes away, bytes where a character is unknown.

    Args:
        legacy: as older ones normalise, with a space after every special token.
    """
    pieces = {piece: number for number, piece in enumerate(SPECIAL)}
    for byte in range(256):
        pieces[f"<0x{byte:02X}>"] = len(pieces)
    merges: list[tuple[str, str]] = []
    for letter in "\u2581abcdefghijklmnopqrstuvwxyz?!.<|>_/":
        pieces[letter] = len(pieces)
    for word in ("\u2581once", "\u2581upon", "\u2581a", "\u2581time", "\u2581the", "\u2581cat"):
        for end in range(2, len(word) + 1):
            pair = (word[: end - 1], word[end - 1])
            if pair not in merges:
                merges.append(pair)
                pieces.setdefault(word[:end], len(pieces))
    core = Tokenizer(
        models.BPE(
            vocab=pieces, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
        )
    )
    if legacy:
        core.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", pieces["<s>"])]
    )
    return _finished(core)


def unigram() -> PreTrainedTokenizerFast:
    """T5's kind: SentencePiece's unigrams, an end token after every text."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=100, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    core.train_from_iterator(WORDS, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", core.token_to_id("</s>"))]
    )
    return _finished(core)


def _finished(core: Tokenizer) -> PreTrainedTokenizerFast:
    core.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
