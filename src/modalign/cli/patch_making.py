"""Verbs of ``modalign patch`` that build a patch from others or from two models, or write a LoRA folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modalign.cli import options
from modalign.cli.patch_output import plain_table, say, write
from modalign.errors import UsageError

if TYPE_CHECKING:
    from modalign.patches import Patch

PatchFile = Annotated[Path, typer.Argument(help="Patch file.", metavar="PATCH")]
PatchFiles = Annotated[list[Path], typer.Argument(help="Patch files of one base model.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="New patch file.")]
Name = Annotated[
    str | None, typer.Option("--name", help="Name of the new patch; default: its file's stem.")
]
Weights = Annotated[
    list[float] | None,
    typer.Option("--weight", help="Weight of a patch, in their order; default: 1 each."),
]


def drop(
    patch: PatchFile,
    edit_id: Annotated[list[str], typer.Option("--id", help="Id of an edit; repeatable.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="New patch file; default: PATCH-without-ID."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Also recompute the patch on this model, and compare."),
    ] = None,
    text: Annotated[
        Path | None, typer.Option("--text", help="With --model: the text of the key statistics.")
    ] = None,
    json_output: options.Json = False,
) -> None:
    """Remove single edits from a patch: it is solved again for the other edits, without the model.

    **Examples**

    - `modalign patch drop fix.safetensors --id 17`

    - `modalign patch drop fix.safetensors --id 17 --id 23 -o smaller.safetensors`

    - `modalign patch drop fix.safetensors --id 17 --model MODEL --text wiki.txt`
    """
    from modalign.patches import drop as without
    from modalign.patches import load_patch

    if text is not None and model is None:
        raise UsageError("--text needs --model")
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in "-".join(edit_id[:3]))
    target = out or patch.with_name(f"{patch.stem}-without-{safe}{patch.suffix}")
    dropped = without(load_patch(patch), edit_id)
    compared = _compare_with_fresh(dropped, model, text, json_output) if model else None
    write(dropped, target, json_output, compared)


def _compare_with_fresh(
    dropped: Patch, model: str, text: Path | None, json_output: bool
) -> dict[str, Any]:
    """Return the distance from a patch computed without the edits, printed or as JSON."""
    from modalign.cli.console import bars, quiet_libraries, stderr, stdout
    from modalign.editing.fresh import distance_from_fresh

    quiet_libraries()
    with bars(not json_output) as progress:
        found = distance_from_fresh(dropped, model, text=text, progress=progress, said=stderr.print)
    if not json_output:
        for name, value in found.tensors.items():
            stdout.print(f"{name}: {value:.2e} from a recomputed patch", highlight=False)
        if not found.same_statistics:
            stdout.print("(its key statistics differ: give the same --text)", highlight=False)
    return {"distance": found.tensors, "same_statistics": found.same_statistics}


def merge(
    patches: Annotated[list[Path], typer.Argument(help="Two or more patch files.")],
    out: Out,
    name: Name = None,
    allow_conflicts: Annotated[
        bool,
        typer.Option(
            "--allow-conflicts", help="Merge even if edits give one prompt different targets."
        ),
    ] = False,
    json_output: options.Json = False,
) -> None:
    """Join patches of one model: solved together if possible, else added.

    **Example**

    - `modalign patch merge one.safetensors two.safetensors -o both.safetensors`
    """
    from modalign.patches import load_patch
    from modalign.patches import merge as join

    loaded = [load_patch(path) for path in patches]
    merged = join(loaded, name=name or out.stem, allow_conflicts=allow_conflicts)
    write(merged, out, json_output)


def scale(
    patch: PatchFile,
    factor: Annotated[float, typer.Argument(help="Factor of its changes.")],
    out: Out,
    name: Name = None,
    json_output: options.Json = False,
) -> None:
    """Make a patch weaker, stronger, or (a negative factor, after `--`) its opposite.

    **Examples**

    - `modalign patch scale fix.safetensors 0.5 -o half.safetensors`

    - `modalign patch scale -o opposite.safetensors -- tuned.safetensors -1`
    """
    from modalign.patches import load_patch
    from modalign.patches import scale as scaled

    write(scaled(load_patch(patch), factor, name=name or out.stem), out, json_output)


def sum_(
    patches: PatchFiles,
    out: Out,
    weight: Weights = None,
    name: Name = None,
    json_output: options.Json = False,
) -> None:
    """Add weighted patches into one ordinary patch.

    Unlike `merge`, edits are never solved together, and contradicting ones are added, too.

    **Example**

    - `modalign patch sum one.safetensors two.safetensors --weight 0.7 --weight 0.3 -o both.safetensors`
    """
    from modalign.patches import add, load_patch

    loaded = [load_patch(path) for path in patches]
    made = add(loaded, weight or [1.0] * len(loaded), name=name or out.stem)
    write(made, out, json_output)


def soup(
    patches: PatchFiles,
    out: Out,
    weight: Weights = None,
    name: Name = None,
    json_output: options.Json = False,
) -> None:
    """Keep patches and their weights together in one file; they are added when it is applied.

    It keeps the parents' hashes and weights (`patch inspect` shows them), and their edits can still
    be dropped.

    **Example**

    - `modalign patch soup law.safetensors code.safetensors --weight 0.5 --weight 0.5 -o both.safetensors`
    """
    from modalign.patches import load_patch
    from modalign.patches import soup as made_soup

    loaded = [load_patch(path) for path in patches]
    made = made_soup(loaded, weight or [1.0] * len(loaded), name=name or out.stem)
    write(made, out, json_output)


def diff(
    folder: Annotated[Path, typer.Argument(help="Changed model folder.", metavar="FOLDER")],
    base: Annotated[Path, typer.Argument(help="Model folder it was made from.", metavar="BASE")],
    out: Out,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance",
            min=0,
            help="Maximum relative error of a matrix stored as factors; 0: exact.",
        ),
    ] = 0.0,
    max_rank: Annotated[
        int, typer.Option("--max-rank", min=1, help="Maximum columns of factors.")
    ] = 64,
    name: Name = None,
    json_output: options.Json = False,
) -> None:
    """Make a patch from a changed model: BASE with the patch has FOLDER's values.

    Without --tolerance the patch is exact, or refused with the reason.

    **Examples**

    - `modalign patch diff tuned my-model -o tuning.safetensors`

    - `modalign patch diff tuned my-model -o tuning.safetensors --tolerance 0.01`
    """
    from modalign.cli.console import bars, quiet_libraries
    from modalign.patches.difference import difference

    quiet_libraries()
    with bars(not json_output) as progress:
        made = difference(
            folder,
            base,
            tolerance=tolerance,
            max_rank=max_rank,
            name=name or out.stem,
            progress=progress,
        )
    write(made, out, json_output)


def export(
    patch: PatchFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="New LoRA folder.")],
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Base model folder: compares peft's logits with it."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", help="Model that peft loads; default: --model, or the patch's own."),
    ] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", min=1, help="Maximum rank per layer.")
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(
            "--max-error", min=0, max=1, help="Maximum relative error of a layer's change."
        ),
    ] = None,
    json_output: options.Json = False,
) -> None:
    """Write a patch as a LoRA folder that plain peft loads.

    **Examples**

    - `modalign patch export fix.safetensors -o fix-lora --model my-model`

    - `modalign patch export tuned.safetensors -o tuned-lora --max-error 0.05`
    """
    from modalign.cli.console import print_json, quiet_libraries
    from modalign.models.open import open_model
    from modalign.patches import load_patch
    from modalign.patches.peft_export import export_lora

    quiet_libraries()
    loaded = load_patch(patch)
    opened = open_model(model)[0] if model is not None else None
    named = base or (str(model) if model is not None else None)
    done = export_lora(loaded, out, base=named, rank=rank, max_error=max_error, model=opened)
    if json_output:
        print_json({"folder": str(done.folder), "ranks": done.ranks, "errors": done.errors,
                    "logits": done.logits})  # fmt: skip
        return
    shown = plain_table("layer", "rank", "relative error", title=f"LoRA in {done.folder}")
    for layer, found in done.ranks.items():
        shown.add_row(layer, str(found), f"{done.errors[layer]:.2g}")
    say(shown)
    if done.logits is None:
        say("Read back and compared; with --model peft's logits would be compared, too.")
    else:
        say(f"Loaded with peft: logits within {done.logits:.2g} of model + patch.")
