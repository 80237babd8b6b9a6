"""``modalign patch``: patches in files and model folders; see ``patch_making`` for combining them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modalign.cli import options, patch_making
from modalign.cli.patch_output import say, show, show_inspection
from modalign.errors import DataError, UsageError

app = typer.Typer(
    help="Apply, inspect, remove and combine patches: changes of a model in one small file.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    epilog=options.EXIT_CODES,
)

PatchFile = Annotated[Path, typer.Argument(help="Patch file.", metavar="PATCH")]
Folder = Annotated[Path, typer.Argument(help="Patched model folder.", metavar="FOLDER")]
Model = Annotated[Path | None, typer.Argument(help="Model folder to compare with.")]


@app.command(name="list", epilog=options.EXIT_CODES)
def list_(
    folder: Annotated[Path, typer.Argument(help="Model folder.", metavar="FOLDER")],
    repair: Annotated[
        bool, typer.Option("--repair", help="Finish or undo a change that was interrupted.")
    ] = False,
    json_output: options.Json = False,
) -> None:
    """Show which patches are in a model folder, and whether its weights match its log.

    **Examples**

    - `modalign patch list edited`

    - `modalign patch list edited --repair`
    """
    from modalign.patches.model_folders import folder_status, repair_folder

    repaired = repair and repair_folder(folder)
    status = folder_status(folder)
    if repaired and not json_output:
        say("An interrupted change was repaired.")
    show(status, json_output, repaired=repaired)
    if status.interrupted:
        raise DataError(
            f"{folder}: a change was interrupted; `modalign patch list {folder} --repair` repairs it"
        )
    if status.problems:
        raise DataError(f"{folder} does not match its log: {'; '.join(status.problems)}")


@app.command(epilog=options.EXIT_CODES)
def inspect(
    patch: PatchFile,
    model: Model = None,
    edits: Annotated[int, typer.Option(min=0, help="Edits to show; 0 for all.")] = 20,
    json_output: options.Json = False,
) -> None:
    """Show where a patch comes from, its edits, and how much of which tensors it changes.

    With MODEL the changes are also shown relative to the weights.

    **Examples**

    - `modalign patch inspect fix.safetensors`

    - `modalign patch inspect fix.safetensors my-model --json`
    """
    from modalign.cli.console import print_json, quiet_libraries
    from modalign.patches import load_patch
    from modalign.patches.inspection import inspect_patch

    if model is not None:
        quiet_libraries()
    found = inspect_patch(load_patch(patch), model)
    if json_output:
        print_json(found.model_dump_json(indent=2))
        return
    show_inspection(found, edits or len(found.header.editing.edits))


@app.command(epilog=options.EXIT_CODES)
def verify(patch: PatchFile, model: Model = None, json_output: options.Json = False) -> None:
    """Check a patch file's hash and, with MODEL, that it was made for this model and tokenizer.

    **Examples**

    - `modalign patch verify fix.safetensors`

    - `modalign patch verify fix.safetensors my-model`
    """
    from modalign.cli.console import print_json, quiet_libraries
    from modalign.patches import load_patch
    from modalign.patches.header import patch_hash
    from modalign.patches.inspection import fits_folder

    if model is not None:
        quiet_libraries()
    loaded = load_patch(patch)
    tensors = fits_folder(loaded, model) if model is not None else None
    sha256 = patch_hash(loaded)
    if json_output:
        print_json({"patch": str(patch), "sha256": sha256, "whole": True, "tensors": tensors,
                    "model": None if model is None else str(model)})  # fmt: skip
        return
    say(f"{patch} is intact: {sha256}")
    if tensors is not None:
        say(f"It fits {model}: {len(tensors)} tensors have the values it expects.")


@app.command(epilog=options.EXIT_CODES)
def apply(
    model: options.Model,
    patches: Annotated[list[Path], typer.Argument(help="Patch files, lowest first.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="New model folder. Default: change a patched MODEL in place."
        ),
    ] = None,
    any_tokenizer: Annotated[
        bool, typer.Option("--any-tokenizer", help="Accept a patch made for another tokenizer.")
    ] = False,
    json_output: options.Json = False,
) -> None:
    """Write a model folder with patches in its weights; `remove` removes them bit for bit.

    Only the changed tensors differ. The new folder keeps the patches, the originals and a log in
    `patches/`. To use a patch without writing a model, give `--patch` to `ask` or `eval`.

    **Examples**

    - `modalign patch apply my-model fix.safetensors -o edited`

    - `modalign patch apply edited another.safetensors`
    """
    from modalign.cli.console import quiet_libraries
    from modalign.patches import load_patch
    from modalign.patches.model_folders import apply_to_folder

    quiet_libraries()
    loaded = [load_patch(path) for path in patches]
    show(apply_to_folder(model, loaded, out, any_tokenizer=any_tokenizer), json_output)


@app.command(epilog=options.EXIT_CODES)
def remove(
    folder: Folder,
    patches: Annotated[
        list[str] | None, typer.Argument(help="Name, beginning of the hash, or file of a patch.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Remove every patch.")] = False,
    json_output: options.Json = False,
) -> None:
    """Remove patches from a folder's weights: the result is bit for bit as without them.

    **Examples**

    - `modalign patch remove edited fix`

    - `modalign patch remove edited --all`
    """
    from modalign.patches.model_folders import remove_from_folder

    if bool(patches) == every:
        raise UsageError("name the patches to remove, or give --all")
    show(remove_from_folder(folder, patches or [], every), json_output)


app.command(epilog=options.EXIT_CODES)(patch_making.drop)
app.command(epilog=options.EXIT_CODES)(patch_making.merge)
app.command(epilog=options.EXIT_CODES)(patch_making.scale)
app.command("sum", epilog=options.EXIT_CODES)(patch_making.sum_)
app.command(epilog=options.EXIT_CODES)(patch_making.soup)
app.command(epilog=options.EXIT_CODES)(patch_making.diff)
app.command(epilog=options.EXIT_CODES)(patch_making.export)
