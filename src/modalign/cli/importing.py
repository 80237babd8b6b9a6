"""``modalign import``: a model in another format as a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modalign.cli import options


def import_model(
    file: Annotated[
        str, typer.Argument(help="GGUF file, or OWNER/NAME/FILE.gguf of the hub.", metavar="FILE")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the model to write.")],
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Of the weights: float32, bfloat16 or float16; default: the file's own, for quantised ones "
            "bfloat16."
        ),
    ] = None,
    overwrite: options.Replace = False,
    json_output: options.Json = False,
) -> None:
    """Convert a GGUF model to a folder that transformers and every verb here read.

    Weights are unpacked, tokenizer and chat template kept; what rounding changed is measured and stated. The
    folder is there only if it loads with the same weights. A file that transformers would read as another model
    (values without a place, missing weights, rotary factors it cannot say) is refused. Verbs take a GGUF file as
    it is, too; they unpack it once into the cache.

    **Examples**

    - `modalign import SmolLM2-135M-Instruct.Q4_1.gguf -o smollm2`

    - `modalign import model.gguf -o model --dtype float32 --json`
    """
    from modalign.cli.console import bars, print_json, quiet_libraries, stdout
    from modalign.models.importing import import_model as imported

    quiet_libraries()
    with bars(not json_output) as progress:
        found = imported(file, out, dtype=dtype, overwrite=overwrite, progress=progress)
    if json_output:
        print_json(found.as_json())
        return
    stored = ", ".join(f"{count} {name}" for name, count in found.types.items())
    stdout.print(
        f"{out}: {found.model}, {found.parameters:,} parameters in {found.dtype} (the file: {stored})",
        markup=False,
        highlight=False,
    )
    changed = f"{found.rounding:.1e} of their norm" if found.rounding else "nothing"
    stdout.print(f"- rounding to {found.dtype} changed {changed}", markup=False, highlight=False)
    if not found.chat_template:
        stdout.print(
            "- the file carries no chat template: the model continues texts", highlight=False
        )
