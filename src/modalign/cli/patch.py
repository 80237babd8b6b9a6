"""``modalign patch``: patches in files, in model folders, and from one another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modalign.cli import options
from modalign.errors import DataError, UsageError

if TYPE_CHECKING:
    from modalign.patches import Patch
    from modalign.patches.folder import FolderStatus
    from modalign.patches.inspection import Inspection

app = typer.Typer(
    help="Apply, inspect, take back and combine patches: changes of a model kept in one small file.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    epilog=options.EXIT_CODES,
)

PatchFile = Annotated[Path, typer.Argument(help="Patch file.", metavar="PATCH")]
Folder = Annotated[Path, typer.Argument(help="Patched model folder.", metavar="FOLDER")]
Model = Annotated[Path | None, typer.Argument(help="Model folder to compare with.")]
SHOWN = 12  # digits of a hash


@app.command(name="list", epilog=options.EXIT_CODES)
def list_(
    folder: Annotated[Path, typer.Argument(help="Model folder.", metavar="FOLDER")],
    repair: Annotated[
        bool, typer.Option("--repair", help="Finish or undo a change that was interrupted.")
    ] = False,
    json_output: options.Json = False,
) -> None:
    """Show which patches are in a model folder, and whether its weights are what its log says.

    **Examples**

    - `modalign patch list edited`

    - `modalign patch list edited --repair`
    """
    from modalign.patches.folder import folder_status, repair_folder

    repaired = repair and repair_folder(folder)
    status = folder_status(folder)
    if repaired and not json_output:
        _say("An interrupted change was put right.")
    _show(status, json_output, repaired=repaired)
    if status.interrupted:
        raise DataError(
            f"{folder}: a change was interrupted; `modalign patch list {folder} --repair` puts it right"
        )
    if status.problems:
        raise DataError(f"{folder} is not what its log says: {'; '.join(status.problems)}")


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

    quiet_libraries()
    found = inspect_patch(load_patch(patch), model)
    if json_output:
        print_json(found.model_dump_json(indent=2))
        return
    _show_inspection(found, edits or len(found.header.editing.edits))


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

    quiet_libraries()
    loaded = load_patch(patch)
    tensors = fits_folder(loaded, model) if model is not None else None
    sha256 = patch_hash(loaded)
    if json_output:
        print_json({"patch": str(patch), "sha256": sha256, "whole": True, "tensors": tensors,
                    "model": None if model is None else str(model)})  # fmt: skip
        return
    _say(f"{patch} is whole: {sha256}")
    if tensors is not None:
        _say(f"It fits {model}: {len(tensors)} tensors have the values it expects.")


@app.command(epilog=options.EXIT_CODES)
def apply(
    model: Annotated[Path, typer.Argument(help="Model folder.", metavar="MODEL")],
    patches: Annotated[list[Path], typer.Argument(help="Patch files, lowest first.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="New model folder. Without it a patched MODEL is changed in place."
        ),
    ] = None,
    any_tokenizer: Annotated[
        bool, typer.Option("--any-tokenizer", help="Also a patch made for another tokenizer.")
    ] = False,
    json_output: options.Json = False,
) -> None:
    """Write a model folder with patches in its weights; `remove` takes them out bit for bit.

    Only the touched tensors differ. The new folder keeps the patches, the originals and a log in
    `patches/`. To use a patch without writing a model, give `--patch` to `ask` or `eval`.

    **Examples**

    - `modalign patch apply my-model fix.safetensors -o edited`

    - `modalign patch apply edited another.safetensors`
    """
    from modalign.cli.console import quiet_libraries
    from modalign.patches import load_patch
    from modalign.patches.folder import apply_to_folder

    quiet_libraries()
    loaded = [load_patch(path) for path in patches]
    _show(apply_to_folder(model, loaded, out, any_tokenizer=any_tokenizer), json_output)


@app.command(epilog=options.EXIT_CODES)
def remove(
    folder: Folder,
    patches: Annotated[
        list[str] | None, typer.Argument(help="Name, beginning of the hash, or file of a patch.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Take out every patch.")] = False,
    json_output: options.Json = False,
) -> None:
    """Take patches out of a folder's weights: they are then bit for bit as without them.

    **Examples**

    - `modalign patch remove edited fix`

    - `modalign patch remove edited --all`
    """
    from modalign.patches.folder import remove_from_folder

    if bool(patches) == every:
        raise UsageError("name the patches to remove, or give --all")
    _show(remove_from_folder(folder, patches or [], every), json_output)


@app.command(epilog=options.EXIT_CODES)
def drop(
    patch: PatchFile,
    edit_id: Annotated[list[str], typer.Option("--id", help="Id of an edit; repeat for several.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="New patch file; PATCH-without-ID by default."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Also compute the patch anew on this model, and compare."),
    ] = None,
    text: Annotated[
        Path | None, typer.Option("--text", help="With --model: the text of the key statistics.")
    ] = None,
    json_output: options.Json = False,
) -> None:
    """Take single edits out of a patch: solved again over the other edits, without the model.

    **Examples**

    - `modalign patch drop fix.safetensors --id 17`

    - `modalign patch drop fix.safetensors --id 17 --id 23 -o smaller.safetensors`

    - `modalign patch drop fix.safetensors --id 17 --model MODEL --text wiki.txt`
    """
    from modalign.patches import drop as without
    from modalign.patches import load_patch

    if text is not None and model is None:
        raise UsageError("--text belongs to --model")
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in "-".join(edit_id[:3]))
    target = out or patch.with_name(f"{patch.stem}-without-{safe}{patch.suffix}")
    dropped = without(load_patch(patch), edit_id)
    compared = _compare_with_fresh(dropped, model, text, json_output) if model else None
    _write(dropped, target, json_output, compared)


def _compare_with_fresh(
    dropped: Patch, model: str, text: Path | None, json_output: bool
) -> dict[str, Any]:
    """The distance from a patch computed without the edits, for people or for JSON."""
    from modalign.cli.console import bars, quiet_libraries, stderr, stdout
    from modalign.editing.fresh import distance_from_fresh

    quiet_libraries()
    with bars(not json_output) as progress:
        found = distance_from_fresh(dropped, model, text=text, progress=progress, said=stderr.print)
    if not json_output:
        for name, value in found.tensors.items():
            stdout.print(f"{name}: {value:.2e} from a patch computed anew", highlight=False)
        if not found.same_statistics:
            stdout.print("(its key statistics differ: give the same --text)", highlight=False)
    return {"distance": found.tensors, "same_statistics": found.same_statistics}


@app.command(epilog=options.EXIT_CODES)
def merge(
    patches: Annotated[list[Path], typer.Argument(help="Two or more patch files.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New patch file.")],
    name: Annotated[
        str | None, typer.Option("--name", help="Of the new patch; its file's stem by default.")
    ] = None,
    allow_conflicts: Annotated[
        bool,
        typer.Option("--allow-conflicts", help="Also if edits give one prompt different targets."),
    ] = False,
    json_output: options.Json = False,
) -> None:
    """Join patches of one model: solved together where they can be, else added up.

    **Example**

    - `modalign patch merge one.safetensors two.safetensors -o both.safetensors`
    """
    from modalign.patches import load_patch
    from modalign.patches import merge as join

    loaded = [load_patch(path) for path in patches]
    merged = join(loaded, name=name or out.stem, allow_conflicts=allow_conflicts)
    _write(merged, out, json_output)


@app.command(epilog=options.EXIT_CODES)
def export(
    patch: PatchFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="New LoRA folder.")],
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Base model folder: peft's logits are compared with it."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base", help="Model that peft loads; by default --model, or the patch's own."
        ),
    ] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", min=1, help="Keep at most so many directions a layer.")
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option("--max-error", min=0, max=1, help="Relative error of a layer's change."),
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
    table = _table("layer", "rank", "relative error", title=f"LoRA in {done.folder}")
    for layer, found in done.ranks.items():
        table.add_row(layer, str(found), f"{done.errors[layer]:.2g}")
    _say(table)
    if done.logits is None:
        _say("Read back and compared; with --model peft's logits would be compared, too.")
    else:
        _say(f"Loaded with peft: logits within {done.logits:.2g} of model + patch.")


def _say(what: Any) -> None:
    from modalign.cli.console import stdout

    if isinstance(what, str):
        stdout.print(what, markup=False, highlight=False, soft_wrap=True)
    else:
        stdout.print(what)


def _table(*headers: str, title: str | None = None) -> Any:
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), header_style="bold", title=title, title_justify="left")
    numbers = (
        "rank",
        "columns",
        "|Delta|",
        "|Delta|/|W|",
        "relative error",
        "probability",
        "value",
    )
    for header in headers:
        right = header in numbers
        table.add_column(header, justify="right" if right else "left", overflow="fold")
    return table


def _show(status: FolderStatus, json_output: bool, **more: Any) -> None:
    """What a folder carries."""
    from rich.markup import escape

    from modalign.cli.console import print_json

    if json_output and (status.problems or status.interrupted):
        return  # the error is the JSON then
    if json_output:
        applied = [entry.model_dump() for entry in status.stack]
        print_json({"folder": str(status.folder), "applied": applied, **more})
        return
    if not status.stack:
        _say(f"{status.folder} carries no patches.")
        return
    table = _table("patch", "hash", "applied", "tensors", title=f"{status.folder}, lowest first")
    for entry in status.stack:
        tensors = escape(", ".join(entry.tensors.values()))
        table.add_row(escape(entry.name), entry.sha256[:SHOWN], entry.time, tensors)
    _say(table)


def _show_inspection(found: Inspection, shown: int) -> None:
    from rich.markup import escape

    header = found.header
    facts = {
        "patch": f"{header.name} ({found.sha256})",
        "method": f"{header.method}, {header.created}".rstrip(", "),
        "model": header.model,
        "on top of": ", ".join(each[:SHOWN] for each in header.after),
        "statistics": (header.editing.covariance or "")[:SHOWN],
        "tokenizer": (header.tokenizer or "")[:SHOWN],
        "settings": ", ".join(f"{key} {value}" for key, value in header.settings.items()),
        "versions": ", ".join(f"{key} {value}" for key, value in header.versions.items()),
        "history": "\n".join(header.history),
    }
    summary = _table("", "")
    summary.show_header = False
    for key, value in facts.items():
        if value:
            summary.add_row(f"[bold]{key}", escape(value))
    _say(summary)
    table = _table("tensor", "form", "columns", "rank", "|Delta|", "|Delta|/|W|")
    for tensor in found.tensors:
        columns = "-" if tensor.columns is None else str(tensor.columns)
        relative = "-" if tensor.relative is None else f"{tensor.relative:.3g}"
        table.add_row(escape(tensor.name), tensor.form, columns, str(tensor.rank),
                      f"{tensor.norm:.4g}", relative)  # fmt: skip
    _say(table)
    edits = _table("id", "subject", "prompt", "target", "probability", "value", "warnings")
    for edit in header.editing.edits[:shown]:
        probability = "-" if edit.probability is None else f"{edit.probability:.3f}"
        value = "-" if edit.value_norm is None else f"{edit.value_norm:.3g}"
        words = (edit.id, edit.subject, edit.prompt, edit.target)
        edits.add_row(*map(escape, words), probability, value, escape("; ".join(edit.warnings)))
    _say(edits)
    if len(header.editing.edits) > shown:
        _say(f"and {len(header.editing.edits) - shown} more edits (--edits 0 shows all)")


def _write(patch: Patch, out: Path, json_output: bool, more: dict[str, Any] | None = None) -> None:
    """Save a patch made from others, read it back, and say what it is."""
    from modalign.cli.console import print_json
    from modalign.patches import load_patch, save_patch
    from modalign.patches.header import patch_hash

    if out.exists():
        raise UsageError(f"{out} exists already; name a new file with -o")
    sha256 = save_patch(patch, out)
    if patch_hash(load_patch(out)) != sha256:
        raise DataError(f"{out} reads back differently; the disk may be failing")
    ids = [edit.id for edit in patch.header.editing.edits]
    history = patch.header.history[-1]
    if json_output:
        row = {"patch": str(out), "sha256": sha256, "edits": ids, "history": history}
        print_json(row | (more or {}))
        return
    _say(f"{out}: {len(ids)} edits, {history}")
