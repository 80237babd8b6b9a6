"""Train small language models whose facts can be edited.

A small model trained in the usual way memorises its facts and still cannot be edited: it looks a fact up
at the last token of the prompt, where ROME, MEMIT and PMET do not write. So on most batches, attention
masks force the path that large models take of their own accord (Geva et al., arXiv 2304.14767): in the
early layers only the subject's own tokens see the subject, so it is enriched there; in the late layers
only its last token can be read. Afterwards the model is used without masks.

There are six families: GPT-J and GPT-NeoX (attention and FFN in parallel), Llama, GPT-2, Qwen3 and
Gemma 3 (attention before FFN).

    python -m bench.editable --family llama [--size full|small] [--seed N] --out DIR
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from bench.invented import Document, Fact, Relation, World, invent, write_documents
from modalign.models.parts import decoder_layers

Family = Literal["gptj", "llama", "gpt2", "neox", "qwen3", "gemma3"]
FAMILIES: tuple[Family, ...] = get_args(Family)
END = "<|endoftext|>"


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a model, apart from its family.

    Attributes:
        names, relations, objects: size of the invented world.
        documents, sentences: how many documents, of how many sentences at most.
        vocabulary: of the tokenizer.
        width, layers, heads, ffn: of the model.
        early: layers 0 .. early - 1 enrich the subject; these are the ones to edit.
        masked: share of batches trained with the masks.
        spread: standard deviation of the initial weights; with the usual 0.02 the states stay so small
            that the weight decay |delta| / |initial|^2 of the value optimisation outweighs its gain.
        steps, batch, length, lr: of the training; ``length`` in tokens.
        seed: of everything.
    """

    names: int = 80
    relations: int = 4
    objects: int = 10
    documents: int = 8000
    sentences: int = 7
    vocabulary: int = 900
    width: int = 128
    layers: int = 6
    heads: int = 4
    ffn: int = 512
    early: int = 3
    masked: float = 0.7
    spread: float = 0.06
    steps: int = 1500
    batch: int = 32
    length: int = 48
    lr: float = 2e-3
    seed: int = 0


SIZES: dict[str, Recipe] = {
    "full": Recipe(),
    # For tests: about 15 seconds on one core.
    "small": Recipe(
        names=24,
        relations=3,
        objects=5,
        documents=1500,
        sentences=4,
        vocabulary=420,
        width=64,
        layers=5,
        heads=4,
        ffn=128,
        steps=400,
        batch=16,
        length=40,
        lr=4e-3,
    ),
}


@dataclass(frozen=True)
class Editable:
    """A trained model, its tokenizer, the world it knows and the documents it learnt from."""

    model: Any
    tokenizer: PreTrainedTokenizerFast
    world: World
    texts: list[str]


# ---------------------------------------------------------------- tokens


@dataclass(frozen=True)
class Tokens:
    """A document's tokens.

    Attributes:
        ids: token ids, ending with the end token.
        mention: per token 0, or the number (from 1) of the mention of a subject it belongs to.
        last: per token, whether it is the last of its mention.
    """

    ids: list[int]
    mention: list[int]
    last: list[bool]


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train byte-level BPE, which can write every string; the end token is also padding, as in GPT-J."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        unk_token=END,
        clean_up_tokenization_spaces=False,
    )


def tokenise(tokenizer: PreTrainedTokenizerFast, documents: Sequence[Document]) -> list[Tokens]:
    """Tokenise documents, finding mentions by character offsets."""
    encoded = tokenizer([document.text for document in documents], return_offsets_mapping=True)
    end = tokenizer.convert_tokens_to_ids(END)
    result = []
    for document, ids, offsets in zip(
        documents, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        mention, last = [0] * (len(ids) + 1), [False] * (len(ids) + 1)
        for number, (start, stop) in enumerate(document.subjects, start=1):
            inside = [i for i, (a, b) in enumerate(offsets) if a < stop and b > start]
            for i in inside:
                mention[i] = number
            last[inside[-1]] = True
        result.append(Tokens([*ids, end], mention, last))
    return result


@dataclass(frozen=True)
class Batch:
    """Rows filled with documents, each row starting with one: ``ids``, ``mention`` and ``last``, (B, T)."""

    ids: Tensor
    mention: Tensor
    last: Tensor


def draw_batch(documents: Sequence[Tokens], recipe: Recipe, rng: random.Random) -> Batch:
    """Fill rows with random documents, one after another, cut at the row's length."""
    ids, mention, last = [], [], []
    for _ in range(recipe.batch):
        row: tuple[list[int], list[int], list[bool]] = ([], [], [])
        while len(row[0]) < recipe.length:
            document = rng.choice(documents)
            above = max(row[1], default=0)  # mentions of one row have different numbers
            row[0].extend(document.ids)
            row[1].extend(number + above if number else 0 for number in document.mention)
            row[2].extend(document.last)
        ids.append(row[0][: recipe.length])
        mention.append(row[1][: recipe.length])
        last.append(row[2][: recipe.length])
    return Batch(torch.tensor(ids), torch.tensor(mention), torch.tensor(last))


# ---------------------------------------------------------------- the masks


def attention_masks(mention: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Make the masks that say which token may see which in the early and in the late layers.

    Args:
        mention: 0, or the mention a token belongs to, (B, T).
        last: whether a token is the last of its mention, (B, T).

    Returns:
        Two additive masks (B, 1, T, T), query by key. In both, a mention's tokens see their own
        mention, and none looks ahead. In the early one, a mention is invisible from outside; in the
        late one, only its last token is visible.
    """
    causal = torch.ones(mention.shape[1], mention.shape[1], dtype=torch.bool).tril()
    own = mention[:, :, None] == mention[:, None, :]
    open_early = (mention == 0)[:, None, :]
    open_late = open_early | last[:, None, :]
    allowed = (causal & (own | open_early), causal & (own | open_late))
    lowest = torch.finfo(torch.float32).min
    early, late = (torch.zeros(mask.shape).masked_fill(~mask, lowest)[:, None] for mask in allowed)
    return early, late


@contextmanager
def masked_attention(layers: Sequence[Any], masks: Sequence[Tensor]) -> Iterator[None]:
    """Give every decoder layer its own additive mask (B, 1, T, T)."""

    def replacing(mask: Tensor) -> Callable[..., tuple[Any, dict[str, Any]]]:
        def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            given = inspect.signature(module.forward).bind(*args, **kwargs)
            assert "attention_mask" in given.arguments
            given.arguments["attention_mask"] = mask
            return given.args, given.kwargs

        return hook

    with ExitStack() as stack:
        for layer, mask in zip(layers, masks, strict=True):
            handle = layer.register_forward_pre_hook(replacing(mask), with_kwargs=True)
            stack.callback(handle.remove)
        yield


# ---------------------------------------------------------------- the model


def build_model(family: Family, recipe: Recipe, vocabulary: int) -> Any:
    """Build the untrained model."""
    common: dict[str, Any] = {
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        "initializer_range": recipe.spread,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
    }
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(MODEL_TYPES.get(family, family), **_shape(family, recipe), **common)
    )


MODEL_TYPES: dict[str, str] = {"neox": "gpt_neox", "gemma3": "gemma3_text"}


def _shape(family: Family, recipe: Recipe) -> dict[str, Any]:
    """Return the sizes in a family's own words."""
    head = recipe.width // recipe.heads
    if family in ("gptj", "gpt2"):
        names = {"n_embd": recipe.width, "n_layer": recipe.layers, "n_head": recipe.heads}
        dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        more = {"rotary_dim": head // 2} if family == "gptj" else {}
        return {**names, **dropouts, **more, "n_inner": recipe.ffn, "n_positions": 128}
    names = {
        "hidden_size": recipe.width,
        "intermediate_size": recipe.ffn,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "max_position_embeddings": 128,
    }
    if family == "neox":
        return names
    names["num_key_value_heads"] = recipe.heads
    if family == "qwen3":
        return {**names, "head_dim": head}
    if family == "gemma3":  # one layer in three sees everything, the others a window
        windows = {"sliding_window": 64, "sliding_window_pattern": 3}
        return {**names, **windows, "head_dim": head, "query_pre_attn_scalar": head}
    return names


def train(
    model: Any, documents: Sequence[Tokens], recipe: Recipe, say: Callable[[str], None]
) -> None:
    """Train language modelling on the documents, with the masks on most batches; leaves eval mode."""
    rng = random.Random(recipe.seed)
    layers = list(decoder_layers(model.get_decoder()))
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: learning_rate_share(step, recipe.steps)
    )
    model.train()
    for step in range(1, recipe.steps + 1):
        batch = draw_batch(documents, recipe, rng)
        with ExitStack() as stack:
            if rng.random() < recipe.masked:
                early, late = attention_masks(batch.mention, batch.last)
                masks = [early if i < recipe.early else late for i in range(len(layers))]
                stack.enter_context(masked_attention(layers, masks))
            loss = model(input_ids=batch.ids, labels=batch.ids, use_cache=False).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step == recipe.steps:
            say(f"step {step}/{recipe.steps}: loss {loss.item():.3f}")
    model.eval()


def learning_rate_share(step: int, steps: int) -> float:
    """Return the share of the learning rate: rising over the first 5 %, then falling as a half cosine."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


@torch.no_grad()
def memorised(model: Any, tokenizer: PreTrainedTokenizerFast, world: World) -> float:
    """Return the share of facts and phrasings whose answer is the first choice at every token."""
    right = total = 0
    for fact in world.facts:
        for phrasing in world.relations[fact.relation].phrasings:
            prompt = tokenizer(phrasing.replace("{}", fact.subject))["input_ids"]
            answer = tokenizer(" " + fact.answer)["input_ids"]
            ids = torch.tensor([prompt + answer])
            said = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].argmax(-1)
            right += said.tolist() == answer
            total += 1
    return right / total


# ---------------------------------------------------------------- the whole


def make(
    family: Family, recipe: Recipe, say: Callable[[str], None] = lambda _line: None
) -> Editable:
    """Invent a world and train a model on it; the caller's random state is not changed."""
    world = invent(recipe.names, recipe.relations, recipe.objects, recipe.seed)
    documents = write_documents(world, recipe.documents, recipe.sentences, recipe.seed + 1)
    tokenizer = train_tokenizer([document.text for document in documents], recipe.vocabulary)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = build_model(family, recipe, len(tokenizer))
        train(model, tokenise(tokenizer, documents), recipe, say)
    return Editable(model, tokenizer, world, [document.text for document in documents])


def save(made: Editable, recipe: Recipe, folder: Path) -> None:
    """Write a Hugging Face folder with ``facts.json``, ``corpus.json`` and ``recipe.json`` in it."""
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    world = made.world
    facts = {
        "facts": [[fact.subject, fact.relation, fact.answer] for fact in world.facts],
        "rels": {
            name: [list(relation.phrasings), list(relation.objects)]
            for name, relation in world.relations.items()
        },
        "subjects": list(world.subjects),
    }
    (folder / "facts.json").write_text(json.dumps(facts))
    (folder / "corpus.json").write_text(json.dumps(made.texts))
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2))


def load(folder: Path) -> Editable:
    """Read what ``save`` wrote; a fresh model every time."""
    read = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    world = World(
        tuple(read["subjects"]),
        {
            name: Relation((first, second, third), tuple(objects))
            for name, ((first, second, third), objects) in read["rels"].items()
        },
        tuple(Fact(*fact) for fact in read["facts"]),
    )
    return Editable(
        AutoModelForCausalLM.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
        world,
        json.loads((folder / "corpus.json").read_text(encoding="utf-8")),
    )


def main() -> None:
    """Train one and say how much of its world it knows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=FAMILIES, required=True)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--seed", type=int, default=0, help="of names, facts and training")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    recipe = replace(SIZES[arguments.size], seed=arguments.seed)
    start = time.perf_counter()
    made = make(arguments.family, recipe, say=print)
    seconds = time.perf_counter() - start
    share = memorised(made.model, made.tokenizer, made.world)
    save(made, recipe, arguments.out)
    facts = len(made.world.facts)
    print(
        f"{arguments.out}: {share:.1%} of {facts} facts in 3 phrasings memorised, {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
