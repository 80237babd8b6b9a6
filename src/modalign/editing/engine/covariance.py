"""C0: the uncentred second moment of the keys, of all layers in one pass over a text.

    C0 = (1 / N) sum over N tokens of k k^T        (MEMIT, arXiv 2210.07229, eq. 15)

It is taken on the model before any edit, and kept under a hash of everything it depends on: the weights
of the layers below, the documents, the number of tokens and the length at which documents are cut. A
folder's name is never part of the hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from modalign.cache import cache_directory
from modalign.data.corpus import Corpus
from modalign.editing.engine.forward import Inputs, Row, StopForwardError
from modalign.editing.engine.spec import ModelSpec
from modalign.editing.engine.store import Hashes, config_text, hash_of, weights_hash
from modalign.editing.multimodal.pictures import PictureRows
from modalign.errors import DataError
from modalign.files import write_atomically
from modalign.hashing import tensor_hash, tokenizer_hash
from modalign.lengths import declared_length
from modalign.models.projections import accepted, evaluating
from modalign.models.sampling import own_samples
from modalign.progress import Progress

TOKENS_PER_DIMENSION = 4  # tokens averaged into C0 for each dimension of a key
FEWEST_TOKENS = 4096
LENGTH = 512  # tokens of a document, or fewer if the model reads fewer
BATCH_TOKENS = 4096
SAVE_EVERY = 32_768  # tokens between two writes of the sums so far
OWN = "the model's own samples"


@dataclass(frozen=True)
class Covariance:
    """C0 of some layers.

    Attributes:
        matrices: by layer, (d_in, d_in), float64.
        tokens: N, the number of keys averaged.
        fingerprint: hash of everything it depends on.
        corpus: name of the text.
    """

    matrices: dict[int, Tensor]
    tokens: int
    fingerprint: str
    corpus: str


def enough_tokens(spec: ModelSpec, layers: Sequence[int]) -> int:
    """Return how many tokens suffice for keys of these layers' length."""
    width = max(spec.input_width(layer) for layer in layers)
    return max(FEWEST_TOKENS, TOKENS_PER_DIMENSION * width)


def collect(
    spec: ModelSpec,
    tokenizer: Any,
    layers: Sequence[int],
    *,
    corpus: Corpus | None = None,
    tokens: int | None = None,
    seed: int = 0,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Covariance:
    """Compute C0 of all given layers in one pass, taking from the cache what it holds, finished or not.

    Args:
        spec: the model, unedited.
        tokenizer: the model's.
        layers: whose FFN projections are to be written.
        corpus: documents; None for what the model itself writes.
        tokens: the most to use; None for as many as the keys' length needs.
        seed: of the order of the documents, and of the model's own samples.
        cache: folder; None for the user's own (``modalign.cache``).
        progress: told the tokens done.

    Raises:
        DataError: the corpus has fewer than 16 tokens, too few to say anything.
    """
    tokens = tokens or enough_tokens(spec, layers)
    prints = _fingerprints(spec, tokenizer, layers, corpus, tokens, seed)
    folder = (cache or cache_directory()) / "covariance"
    held = {
        layer: _Sums.read(folder / f"{name}.safetensors", spec, [layer])
        for layer, name in prints.items()
    }
    missing = {
        layer: folder / f"{prints[layer]}.safetensors"
        for layer, sums in held.items()
        if not sums.complete
    }
    if missing:
        sums = _joined([held[layer] for layer in missing], spec)
        documents = _documents(spec, tokenizer, corpus, tokens, seed)
        rows = [Row(tuple(document), 0) for document in documents[sums.documents :]]
        told = _telling(progress, "key statistics", sum(map(len, documents)))
        _accumulate(spec, rows, sums, missing, tokens, told)
        held |= dict.fromkeys(missing, sums)
    counted = min(sums.tokens for sums in held.values())
    if counted < 16:
        raise DataError(f"{corpus.name if corpus else OWN}: only {counted} tokens of text")
    return Covariance(
        matrices={layer: sums.values[layer] / sums.tokens for layer, sums in held.items()},
        tokens=counted,
        fingerprint=_of_all(prints),
        corpus=corpus.name if corpus else OWN,
    )


def _joined(parts: Sequence[_Sums], spec: ModelSpec) -> _Sums:
    """Join unfinished sums of several layers if they are equally far; otherwise start all over."""
    layers = [layer for part in parts for layer in part.values]
    if len({(part.tokens, part.documents) for part in parts}) > 1:
        return _Sums.zeros(spec, layers)
    values = {layer: value for part in parts for layer, value in part.values.items()}
    return _Sums(values, parts[0].tokens, parts[0].documents)


def collect_rows(
    spec: ModelSpec,
    layers: Sequence[int],
    source: PictureRows,
    *,
    tokens: int | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Covariance:
    """Compute C0 over all tokens of prompts about pictures, picture and text tokens alike.

    Args:
        spec: the model, unedited.
        layers: whose FFN projections are to be written.
        source: of the rows.
        tokens: how many to use at most; None for what the keys' length asks for.
        cache: folder; None for the user's own (``modalign.cache``).
        progress: told the tokens done.

    Raises:
        DataError: fewer than 16 tokens.
    """
    tokens = tokens or enough_tokens(spec, layers)
    below = _weights_below(spec, layers)
    decoder = {id(parameter) for parameter in spec.layers.parameters()}
    for name, parameter in spec.model.named_parameters():  # of towers and connectors
        if id(parameter) not in decoder:
            below.update(f"{name} {tensor_hash(parameter)}\n".encode())
    below.update(json.dumps([sorted(layers), source.sha256, tokens]).encode())
    fingerprint = below.hexdigest()
    file = (cache or cache_directory()) / "covariance" / f"{fingerprint}.safetensors"
    sums = _Sums.read(file, spec, layers)
    if not sums.complete:
        told = _telling(progress, "key statistics of pictures", tokens)
        files = dict.fromkeys(layers, file)
        _accumulate(spec, source.rows(sums.documents), sums, files, tokens, told)
    if sums.tokens < 16:
        raise DataError(f"{source.name}: only {sums.tokens} tokens in prompts about pictures")
    matrices = {layer: value / sums.tokens for layer, value in sums.values.items()}
    return Covariance(matrices, sums.tokens, fingerprint, source.name)


def _telling(progress: Progress | None, name: str, total: int) -> Callable[[int], None]:
    """Make a callback that reports how many tokens are done."""
    if progress is None:
        return lambda done: None
    return lambda done: progress(name, min(done, total), total)


def combined(text: Covariance, pictures: Covariance, weight: float) -> Covariance:
    """Return C0 = C_text + weight C_pictures, each a mean over its own tokens."""
    digest = hashlib.sha256(f"{text.fingerprint} {pictures.fingerprint} {weight!r}".encode())
    return Covariance(
        matrices={
            layer: matrix + weight * pictures.matrices[layer]
            for layer, matrix in text.matrices.items()
        },
        tokens=text.tokens + pictures.tokens,
        fingerprint=digest.hexdigest(),
        corpus=f"{text.corpus} + {weight:g} x {pictures.corpus}",
    )


def _fingerprints(
    spec: ModelSpec,
    tokenizer: Any,
    layers: Sequence[int],
    corpus: Corpus | None,
    tokens: int,
    seed: int,
) -> dict[int, str]:
    """Hash weights, tokens and text per layer; the model's own samples depend on all of its weights."""
    known: Hashes = {}
    text = corpus.sha256 if corpus else f"own {weights_hash(spec, known)}"
    what = [text, tokenizer_hash(tokenizer), tokens, seed, _length(spec)]
    found = {}
    for layer in sorted(layers):
        digest = _weights_below(spec, [layer], known)
        digest.update(json.dumps([layer, *what]).encode())
        found[layer] = digest.hexdigest()
    return found


def _of_all(prints: Mapping[int, str]) -> str:
    """Combine the hashes of several layers' statistics into one."""
    return hashlib.sha256("".join(prints.values()).encode()).hexdigest()


def _weights_below(spec: ModelSpec, layers: Sequence[int], known: Hashes | None = None) -> Any:
    """Hash what keys depend on, which excludes the last layer's own output projection."""
    last = max(layers)
    embedding = {id(p) for p in spec.language.get_input_embeddings().parameters()}
    unused = {id(p) for layer in spec.layers[last + 1 :] for p in layer.parameters()}
    unused |= {id(p) for p in spec.projection(last, "ffn").parameters()}
    unused |= {id(p) for p in spec.language.get_output_embeddings().parameters()} - embedding
    digest = hashlib.sha256(f"{spec.dtype} {config_text(spec)}".encode())
    for name, parameter in spec.language.named_parameters():
        if id(parameter) not in unused:
            digest.update(f"{name} {hash_of(parameter, known)}\n".encode())
    return digest


@dataclass
class _Sums:
    """Sums of second moments over the tokens done so far."""

    values: dict[int, Tensor]
    tokens: int = 0
    documents: int = 0
    complete: bool = False

    @classmethod
    def read(cls, file: Path, spec: ModelSpec, layers: Sequence[int]) -> _Sums:
        """Read what an earlier run left; zeros if there is nothing, or the file cannot be read."""
        try:
            with safe_open(file, framework="pt") as held:
                meta = held.metadata()
                values = {layer: held.get_tensor(str(layer)) for layer in layers}
            return cls(
                values, int(meta["tokens"]), int(meta["documents"]), meta["complete"] == "yes"
            )
        except (FileNotFoundError, SafetensorError, KeyError):
            return cls.zeros(spec, layers)

    @classmethod
    def zeros(cls, spec: ModelSpec, layers: Sequence[int]) -> _Sums:
        """Start with no tokens done."""
        sizes = {layer: spec.input_width(layer) for layer in layers}
        return cls({layer: torch.zeros(d, d, dtype=torch.float64) for layer, d in sizes.items()})

    def write(self, files: Mapping[int, Path]) -> None:
        """Write each layer's file; layers that share one are written together."""
        meta = {
            "tokens": str(self.tokens),
            "documents": str(self.documents),
            "complete": "yes" if self.complete else "no",
        }
        for file in set(files.values()):
            file.parent.mkdir(parents=True, exist_ok=True)
            values = {str(k): v for k, v in self.values.items() if files[k] == file}
            write_atomically(file, save(values, metadata=meta))


def _documents(
    spec: ModelSpec, tokenizer: Any, corpus: Corpus | None, tokens: int, seed: int
) -> list[list[int]]:
    """Return token ids of documents in random order, cut at the model's length, ``tokens`` in all."""
    if corpus is None:
        return _limited(own_samples(spec.language, tokenizer, tokens, seed=seed), tokens)
    order = torch.randperm(len(corpus.documents), generator=torch.Generator().manual_seed(seed))
    chosen: list[list[int]] = []
    count, length = 0, _length(spec)
    for number in order.tolist():
        ids = list(tokenizer(corpus.documents[number])["input_ids"])
        # A long document is read in pieces, to its end.
        pieces = [ids[start : start + length] for start in range(0, len(ids), length)]
        chosen += pieces
        count += len(ids)
        if count >= tokens:
            break
    return _limited(chosen, tokens)


def _length(spec: ModelSpec) -> int:
    return min(LENGTH, declared_length(spec.language.config) or LENGTH)


def _limited(documents: list[list[int]], tokens: int) -> list[list[int]]:
    kept: list[list[int]] = []
    for document in documents:
        if tokens <= 0:
            break
        kept.append(document[:tokens])
        tokens -= len(kept[-1])
    return kept


def _accumulate(
    spec: ModelSpec,
    rows: Iterable[Row],
    sums: _Sums,
    files: Mapping[int, Path],
    tokens: int,
    told: Callable[[int], None],
) -> None:
    """Sum over rows until there are ``tokens``; the sums so far are written now and then."""
    saved = sums.tokens
    for batch in _batches(rows, tokens - sums.tokens):
        sums.tokens += _add(spec, Inputs.of([r.with_target(spec) for r in batch], spec), sums)
        sums.documents += len(batch)
        told(sums.tokens)
        if sums.tokens - saved >= SAVE_EVERY:
            sums.write(files)
            saved = sums.tokens
    sums.complete = True
    sums.write(files)


def _batches(rows: Iterable[Row], tokens: int) -> Iterator[list[Row]]:
    """Yield batches of about ``BATCH_TOKENS`` padded tokens, until ``tokens`` are reached."""
    batch: list[Row] = []
    taken = 0
    for row in rows:
        if taken >= tokens:
            break
        if batch and max(len(row), *map(len, batch)) * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
        taken += len(row)
    if batch:
        yield batch


def _add(spec: ModelSpec, inputs: Inputs, sums: _Sums) -> int:
    """Add the second moments of one batch; the model runs up to the last layer asked for."""
    real = inputs.mask.bool()
    last = max(sums.values)

    def note(layer: int) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            # In float64: sums in float32 leave C0 with negative eigenvalues where keys are rare.
            keys = args[0].reshape(*real.shape, -1)[real].double()
            sums.values[layer] += (keys.T @ keys).cpu()
            if layer == last:
                raise StopForwardError

        return hook

    with ExitStack() as stack, torch.no_grad(), evaluating(spec.language):
        for layer in sums.values:
            handle = spec.projection(layer, "ffn").register_forward_pre_hook(note(layer))
            stack.enter_context(handle)
        with suppress(StopForwardError):
            spec.language(use_cache=False, **accepted(spec.language, inputs.given))
    return int(real.sum())
