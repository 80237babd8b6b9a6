"""``modalign data reformat``: the facts of a file asked in other forms."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modalign.cli import options


def reformat(
    data: Annotated[str, typer.Argument(help="Questions with answers, in any format.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="JSON Lines file to write.")],
    forms: Annotated[
        str | None,
        typer.Option(
            help="cloze, choice2, choice4, reversed, odd_one_out, comprehension, paraphrase, free; default: all."
        ),
    ] = None,
    pool: Annotated[
        str | None,
        typer.Option(help="Further questions, whose answers and subjects distract as well."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of distractors and of the order of options.")] = 0,
    columns: options.Columns = None,
    overwrite: options.Replace = False,
    json_output: options.Json = False,
) -> None:
    """Ask the facts of a file in other forms, to see whether a model knows them however it is asked.

    Distractors are other answers of the same relation (the field `skill` or `relation`), or a record's own
    `options`. `reversed` and `odd_one_out` need the field `subject`; `paraphrases` is a list of other wordings.

    **Examples**

    - `modalign data reformat forget.jsonl -o forms.jsonl`

    - `modalign data reformat forget.jsonl --pool retain.jsonl --forms cloze,choice4 --seed 1 -o forms.jsonl`
    """
    from modalign.cli.console import print_json, stderr, stdout
    from modalign.data.readers import write_records
    from modalign.data.readers.columns import parse_columns
    from modalign.data.reformatting import FORMS, read_questions
    from modalign.data.reformatting import reformat as run
    from modalign.files import check_free

    check_free(out, overwrite=overwrite)
    named = parse_columns(columns)
    records = read_questions(data, named)
    wanted = [name.strip() for name in (forms or "").split(",") if name.strip()]
    made = run(records, wanted, pool=read_questions(pool, named) if pool else (), seed=seed)
    write_records(made.records, out)
    counts = {f: sum(r.skill == f for r in made.records) for f in wanted or FORMS}
    left = {form: count for form, count in made.left_out.items() if count}
    if json_output:
        print_json({"out": str(out), "facts": len(records), "records": counts, "left_out": left})
        return
    shown = ", ".join(f"{count} {form}" for form, count in counts.items())
    stdout.print(f"{len(records)} facts: {shown}", highlight=False, markup=False)
    for form, count in left.items():
        stderr.print(
            f"note: {form} could not be made of {count} facts (too few other answers or subjects of the "
            "relation)",
            markup=False,
            highlight=False,
        )
