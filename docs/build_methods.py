"""Write docs/methods.md from the registry: ``python docs/build_methods.py`` (``--check`` only compares).

Nothing in that page is typed by hand: names, formulas and sources come from the connectors' classes
and module descriptions, numbers from ``parameter_count`` and from modules built without weights.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modalign.connectors.base import Connector, InLayerConnector, Variant, Widths
from modalign.training.methods import Method, method_names, resolve_method

PAGE = Path(__file__).with_name("methods.md")

PAIRS = {
    "CLIP-L/14-336 → 7B": Widths(1024, 4096, 576, (24, 24), num_layers=32, num_heads=32),
    "SigLIP-B/16-224 → 0.5B": Widths(768, 896, 196, (14, 14), num_layers=24, num_heads=14),
    "SigLIP-B/16-224 → 135M": Widths(768, 576, 196, (14, 14), num_layers=30, num_heads=9),
}
# Fuyu's patches of 30 x 30 x 3 in place of an encoder's features, on grids of the same shape.
RAW_SIZE = 30 * 30 * 3
VOCABULARY = 32_000  # of the language model, for connectors that read its embedding
VARIANTS: tuple[Variant, ...] = ("matched", "published")

HEAD = """\
# The methods

<!-- Written by docs/build_methods.py from the registry. Change the connector's own file, then run it again. -->

A method is a connector at a size with a recipe. `modalign compare --methods` takes these names, a family
(`converters`, `perceivers`), or `all`; `modalign methods NAME` prints one. The survey's other two families are no
connectors and not on this page: tool chains (`tool:NAME`, see [tools.md](tools.md)) and data recipes
(`mlp+captions_first`, see [recipes.md](recipes.md)). Every method has two sizes: **matched**
to the width of the language model, which is the plain name, and **published**, which is the name with `:published`
behind it (`resampler:published`). A small language model needs the first: the published perceivers were made for
models of several billion parameters and do not shrink with the model.

Notation: N features of width d come from the encoder (on a grid of h × w where there is one). The language model
has width D and L layers. M is the number of tokens that one image takes in its input (0 for methods inside the
layers). Parameters and FLOPs are of the connector alone. FLOPs are of one image, forward; a multiply-add
counts 2. Methods inside the layers also cost FLOPs per text position: the tables add those of 32 positions.

The three reference pairs are CLIP ViT-L/14 at 336 pixels (d 1024, N 576) with a model of width 4096 and 32
layers, and SigLIP-B/16 at 224 pixels (d 768, N 196) with models of 896 and 24, and of 576 and 30.
`raw_patches` has no encoder; its d is 2700, Fuyu's patches of 30 × 30 × 3. The language models have
32,000 words.

"""

ENTERS = {
    "prefix": "its tokens stand in the language model's input",
    "in-layer": "read inside the decoder layers; one mark token stands in the text",
}


def count(value: float) -> str:
    """A number of parameters, three digits."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return (
                f"{value / limit:.3g} {unit}"
                if value < 999.5 * limit
                else f"{value / limit:.0f} {unit}"
            )
    return f"{value:.0f}"


def flops(value: float) -> str:
    """A number of FLOPs, three digits."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.0f}"


def widths_for(method: Method, widths: Widths) -> Widths:
    """The pair as this method meets it."""
    if not method.facts.raw_input:
        return widths
    return Widths(
        RAW_SIZE,
        widths.hidden_size,
        widths.num_features,
        widths.grid,
        widths.num_layers,
        widths.num_heads,
    )


def built(cls: type[Connector], widths: Widths, variant: Variant) -> Connector:
    """The connector without weights."""
    with torch.device("meta"):
        module = cls(widths, **cls.options_for(variant, widths))
        module.attach_embeddings(nn.Embedding(VOCABULARY, widths.hidden_size))
    return module


def size_table(method: Method) -> list[str]:
    """Parameters, tokens and FLOPs at the three pairs, in both sizes."""
    lines = ["| | size | options | parameters | tokens | FLOPs |", "|---|---|---|---|---|---|"]
    for name, pair in PAIRS.items():
        widths = widths_for(method, pair)
        rows = []
        for variant in VARIANTS:
            options = method.facts.options_for(variant, widths)
            module = built(method.facts, widths, variant)
            cost = module.flops(widths.num_features)
            if isinstance(module, InLayerConnector):
                cost += 32 * module.flops_per_position()
            shown = listed(options) or "none"
            rows.append(
                f"| {shown} | {count(method.facts.parameter_count(widths, **options))} "
                f"| {module.num_tokens(widths.num_features)} | {flops(cost)} |"
            )
        if rows[0] == rows[1]:
            lines.append(f"| {name} | both {rows[0]}")
        else:
            lines += [
                f"| {name} | {variant} {row}" for variant, row in zip(VARIANTS, rows, strict=True)
            ]
    return lines


def listed(options: dict[str, Any]) -> str:
    """Options in words; nested ones in brackets."""
    items = (
        f"{key} ({listed(value)})" if isinstance(value, dict) else f"{key} {value}"
        for key, value in options.items()
    )
    return ", ".join(items)


def prose(text: str) -> str:
    """A module description's text as Markdown."""
    text = re.sub(r":\w+:`~?([\w.]+\.)?(\w+)`", r"`\2`", text)
    return text.replace("``", "`").replace("*", r"\*").replace("<", r"\<")


LABEL = re.compile(r"^([A-Z][\w' ]{2,30}|Parameters[^:]{0,60}|Recipe of[^:]{0,30}): ")
FORMULAS = re.compile(r"^Parameters, with", re.MULTILINE)


def description(module: str) -> list[str]:
    """A connector's module description as Markdown blocks."""
    blocks: list[str] = []
    title, *paragraphs = module.strip().split("\n\n")
    blocks.append(prose(title))
    for paragraph in paragraphs:
        lines = paragraph.splitlines()
        if lines[0].startswith("    "):
            blocks.append("\n".join(["```text", *(line[4:] for line in lines), "```"]))
        elif FORMULAS.match(paragraph):
            end = next(number for number, line in enumerate(lines) if line.endswith(":"))
            first = prose(" ".join(lines[: end + 1]))
            first, _, inline = first.partition(":")
            blocks.append(first + ":")
            after = next(
                (n for n, line in enumerate(lines) if line.startswith(("The ", "``"))), len(lines)
            )
            blocks.append(
                "\n".join(
                    ["```text", *([inline] if inline else []), *lines[end + 1 : after], "```"]
                )
            )
            if lines[after:]:
                blocks.append(prose("\n".join(lines[after:])))
        else:
            blocks.append(prose(_with_bullets(lines)))
    return blocks


def _with_bullets(lines: list[str]) -> str:
    """Labelled sentences (``Shapes: ...``) become list items; others stay a paragraph."""
    ends = [True, *(line.endswith((".", ":")) for line in lines)]  # of the line before
    labelled = [bool(LABEL.match(line)) and end for line, end in zip(lines, ends, strict=False)]
    out: list[str] = []
    for line, label in zip(lines, labelled, strict=True):
        if line.startswith("* "):
            out += ([""] if out and not out[-1].startswith(("- ", "  ")) else []) + [
                "- " + line[2:]
            ]
        elif line.startswith("  ") and out:
            out.append(line)
        elif line.startswith("+ "):
            out.append("\\" + line)
        elif label and labelled[0]:
            out.append("- " + line)
        elif labelled[0]:
            out.append("  " + line)
        else:
            out.append(line)
    return "\n".join(out)


def section(method: Method) -> str:
    """One method's part of the page."""
    cls = method.facts
    facts = (
        f"*{cls.family}, {cls.group}*. Enters as **{cls.enters}**: {ENTERS[cls.enters]}. "
        f"Tokens: `{cls.token_formula}`. Parameters: `{cls.parameter_text}`. "
        f"Source: {'; '.join(cls.papers)}. "
    )
    if cls.needs_grid:
        facts += "It needs features on a grid. "
    stages = " then ".join(f"`{stage.name}`" for stage in method.stages)
    facts += f"The winner is saved as {_saved(cls)}. Stages: {stages}. "
    if cls.rate_scale != 1:
        facts += f"Its learning rate is {cls.rate_scale:g} times the one set for connectors. "
    if method.name != method.connector:
        return (
            f"## {method.name}\n\n{facts.strip()}\n\n`{method.connector}` without its own pre-training: the whole "
            "budget goes to the stage through the language model. Shapes and sizes are the same. It is there "
            "because published comparisons often leave that pre-training out.\n"
        )
    blocks = [facts.strip(), *description(sys.modules[cls.__module__].__doc__ or "")]
    text = "\n\n".join(blocks)
    while (joined := re.sub(r"(\n- [^\n]*(?:\n  [^\n]*)*)\n\n- ", r"\1\n- ", text)) != text:
        text = joined
    return f"## {method.name}\n\n{text}\n\n" + "\n".join(size_table(method)) + "\n"


def _saved(cls: type[Connector]) -> str:
    own = "a folder with its own code (`trust_remote_code=True`)"
    if cls.export_target == "remote-code":
        return own
    return (
        f"transformers' own `{cls.export_target}` where the parts allow it ([export.md](export.md)), "
        f"else {own}"
    )


def page() -> str:
    """The whole page."""
    methods = [resolve_method(name) for name in method_names()]
    own = [method for method in methods if method.facts.__module__.startswith("modalign.")]
    contents = ["| method | family | enters | tokens | parameters |", "|---|---|---|---|---|"]
    contents += [
        f"| [{m.name}](#{m.name}) | {m.facts.family} | {m.facts.enters} | `{m.facts.token_formula}` "
        f"| `{m.facts.parameter_text}` |"
        for m in own
    ]
    return HEAD + "\n".join(contents) + "\n\n" + "\n".join(section(method) for method in own)


if __name__ == "__main__":
    text = page()
    if "--check" in sys.argv:
        sys.exit(
            None
            if PAGE.read_text(encoding="utf-8") == text
            else "docs/methods.md is not up to date"
        )
    PAGE.write_text(text, encoding="utf-8")
