"""``modalign ask``: one question about media, one answer."""

from __future__ import annotations

from typing import Annotated

import typer

from modalign.cli import options
from modalign.data.records import Media


@options.takes_media
def ask(
    model: options.Model,
    question: Annotated[str, typer.Argument(help="The question.")],
    media: list[Media],
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum length of the answer in tokens.")
    ] = 64,
    patch: options.Patches = None,
    control_token: options.ControlTokens = None,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json_output: options.Json = False,
) -> None:
    """Ask a model about images, sounds or other media, or any language model about text.

    A language model without a chat template continues the question's text.

    **Examples**

    - `modalign ask runs/compare/best --image scene.png "which digit is on the left?"`

    - `modalign ask runs/digits/model --audio 7_jackson_0.wav "which digit is spoken?"`

    - `modalign ask runs/people/model --media table=people.csv#3 "is the dose usual?"`

    - `modalign ask runs/compare/best "is seven even or odd?"`

    - `modalign ask my-model --patch fix.safetensors "The capital of Australia is"`
    """
    from modalign.chat_templates import let_through
    from modalign.cli.console import print_json, quiet_libraries, stdout
    from modalign.evaluation.generation import answer
    from modalign.models.asking import tokenizer_of
    from modalign.models.open import open_model
    from modalign.patches import with_patches

    quiet_libraries()
    loaded, processor = open_model(model, device=device or "auto")
    let_through(tokenizer_of(processor), control_token or [])
    patched = with_patches(loaded, tokenizer_of(processor), patch or [])
    text = answer(patched, processor, question, media, max_new_tokens)
    if json_output:
        said = {"question": question, "answer": text, "model": str(model)}
        print_json(said | {"patches": [str(path) for path in patch or []]})
    else:
        stdout.print(text, markup=False, highlight=False, soft_wrap=True)
