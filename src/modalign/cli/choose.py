"""``modalign choose``: one question, given options, one of them as the answer."""

from __future__ import annotations

from typing import Annotated

import typer

from modalign.cli import options
from modalign.data.records import Media


@options.takes_media
def choose(
    model: options.Model,
    question: Annotated[str, typer.Argument(help="The question.")],
    media: list[Media],
    option: Annotated[
        list[str] | None, typer.Option("--option", help="An option; give two or more.")
    ] = None,
    orders: Annotated[
        int, typer.Option(min=1, help="Orders in which the options are shown with letters.")
    ] = 4,
    seed: Annotated[int, typer.Option(help="Of the first order.")] = 0,
    patch: options.Patches = None,
    control_token: options.ControlTokens = None,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json_output: options.Json = False,
) -> None:
    """Choose one of the given options as the answer, by likelihood; nothing is generated.

    The options are shown with letters in several orders, each option under other letters, and the letters'
    probabilities are averaged: the table shows how far they spread. Beside it stands the log-likelihood of
    each option's own words. Equal commands give equal answers.

    **Examples**

    - `modalign choose my-llm "Is seven odd or even?" --option odd --option even`

    - `modalign choose runs/compare/best --image scene.png "Which digit?" --option three --option eight --json`
    """
    from rich.table import Table

    from modalign.chat_templates import let_through
    from modalign.cli.console import print_json, quiet_libraries, stdout
    from modalign.evaluation.choosing import choose as chosen_by
    from modalign.models.asking import tokenizer_of
    from modalign.models.open import open_model
    from modalign.numbers import words
    from modalign.patches import with_patches

    quiet_libraries()
    loaded, reader = open_model(model, device=device or "auto")
    let_through(tokenizer_of(reader), control_token or [])
    patched = with_patches(loaded, tokenizer_of(reader), patch or [])
    found = chosen_by(patched, reader, question, option or [], media, orders=orders, seed=seed)
    if json_output:
        print_json({"question": question, "model": str(model), **found.summary()})
        return
    table = Table(title=f"{found.answer}, likeliest in {words.percent(found.agreement)} of orders")
    for heading in ("option", "probability", "over orders", "nats", "nats a byte"):
        table.add_column(heading, justify="left" if heading == "option" else "right")
    for each in found.options:
        spread = f"{words.percent(each.low)} to {words.percent(each.high)}"
        numbers = (f"{each.loglikelihood:.2f}", f"{each.per_byte:.3f}")
        style = "bold" if each.option == found.answer else None
        table.add_row(each.option, words.percent(each.probability), spread, *numbers, style=style)
    stdout.print(table)
    if found.by_words != found.answer:
        note = f"note: by the words of the options it is {found.by_words}"
        stdout.print(note, markup=False, highlight=False)
