"""``modalign eval``: a saved model on a data file, or on a file of edits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from modalign.cli import options
from modalign.errors import UsageError


def evaluate(
    model: options.Model,
    data: Annotated[
        str | None, typer.Argument(help="Data file with expected answers; not for edits.")
    ] = None,
    task: Annotated[
        str,
        typer.Option(
            "--task",
            help="exact, vqa, anls, choice, caption, wer, pope, chair, unlearning; for edits: counterfact, "
            "zsre or mmedit.",
        ),
    ] = "exact",
    letters: Annotated[
        bool,
        typer.Option(
            "--letters",
            help="With choice, or --suite: show shuffled options and score their letters.",
        ),
    ] = False,
    objects: Annotated[
        Path | None,
        typer.Option("--objects", help="With chair: JSON file of objects with synonyms."),
    ] = None,
    edits: Annotated[
        Path | None,
        typer.Option("--edits", help="For tasks of edits: the edits, as .json, .jsonl or .csv."),
    ] = None,
    patch: options.Patches = None,
    text: Annotated[
        Path | None,
        typer.Option("--text", help="For tasks of edits: held-out text for perplexity and drift."),
    ] = None,
    form: Annotated[
        Literal["auto", "plain", "chat", "both"],
        typer.Option(
            "--form",
            help="For tasks of edits: prompts as they stand, in the chat template, or both; auto is both where "
            "the model has a template (mmedit: chat).",
        ),
    ] = "auto",
    no_generate: Annotated[
        bool, typer.Option("--no-generate", help="For tasks of edits: teacher-forced numbers only.")
    ] = False,
    knew: Annotated[
        Path | None, typer.Option("--knew", help="With unlearning: the model before it forgot.")
    ] = None,
    never_knew: Annotated[
        str,
        typer.Option(
            help="With unlearning: a model that never knew, or invented (the one before, asked about other names)."
        ),
    ] = "invented",
    retrained: Annotated[
        Path | None, typer.Option(help="With unlearning: a model trained without the facts.")
    ] = None,
    retain: Annotated[
        str | None, typer.Option(help="With unlearning: questions to keep, for utility.")
    ] = None,
    attacks: Annotated[
        str | None,
        typer.Option(
            help="With unlearning: of '8 bits,4 bits,25 % pruned,relearned' (all), or none."
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            "--suite",
            help="Instead of data: text (TruthfulQA, ETHICS, GSM8K, perplexity by domain).",
        ),
    ] = None,
    suite_data: Annotated[
        Path | None, typer.Option("--suite-data", help="With --suite: folder of its files.")
    ] = None,
    parts: Annotated[
        str | None,
        typer.Option(
            "--parts",
            help="With --suite: of truthfulqa,ethics,gsm8k,domains; default: all there are.",
        ),
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            "--against",
            help="With --suite: a model to hold it against, such as the one before; repeatable.",
        ),
    ] = None,
    random_weights: Annotated[
        int | None,
        typer.Option(
            "--random-weights", min=0, help="With --suite: so many models of random weights (3)."
        ),
    ] = None,
    orders: Annotated[
        int | None, typer.Option("--orders", min=1, help="With --suite: orders of the options (5).")
    ] = None,
    shots: Annotated[
        str | None,
        typer.Option(
            "--shots", help="Examples before every question: 1,2,4; with --suite, of GSM8K (5)."
        ),
    ] = None,
    shots_from: Annotated[
        str | None,
        typer.Option(
            "--shots-from", help="With --shots: data file of the examples, not evaluated."
        ),
    ] = None,
    rationale: Annotated[
        str | None,
        typer.Option(
            "--rationale",
            help="Score what follows this mark; with, without and with other rationales.",
        ),
    ] = None,
    max_rationale_tokens: Annotated[
        int, typer.Option(min=1, help="With --rationale: longest one in tokens.")
    ] = 256,
    corrupt: Annotated[
        str | None,
        typer.Option("--corrupt", help="Corrupt media: of noise,blur,jpeg,rotate."),
    ] = None,
    severity: Annotated[
        str | None, typer.Option("--severity", help="With --corrupt: of 1 to 5 (1,3,5).")
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Seed of intervals, options' order and edits' texts.")
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Write every record's prompts, outputs and scores here; with --suite, the run's folder.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, where that is a folder.")
    ] = False,
    overwrite: options.Replace = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions per batch.")] = 16,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum length of answers in tokens (32; of GSM8K 256)."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="So many records, drawn over skills by --seed.")
    ] = None,
    train: options.TrainedOn = None,
    skip_broken: options.SkipBroken = None,
    columns: options.Columns = None,
    control_token: options.ControlTokens = None,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json_output: options.Json = False,
) -> None:
    """Ask a model every question and score the answers with a task, per skill and overall.

    Without --task an answer is correct if it equals an expected one. The same questions are asked with
    blank and with shuffled media: the score that remains does not come from the media. Questions
    about several modalities are also asked with each alone. The table also shows the data's most frequent
    answer and chance: a uniform guess among the options, else among the training answers.

    The task unlearning asks the model that forgot, the one before (`--knew`), one that never knew and one
    `--retrained` the questions of `modalign data reformat`, and attacks the first; `--out` is the report's folder.

    A suite asks the language model alone, with no media, and holds it against other models, models of random
    weights, chance and surface rules; `--out` is the run's folder.

    With `--shots`, `--rationale` or `--corrupt` the same questions are asked under several conditions, which are
    compared; `--out` is the run's folder.

    The tasks counterfact, zsre and mmedit score a model on edits of its facts, as in the papers; with
    --patch the model without it stands beside it.

    **Examples**

    - `modalign eval runs/compare/best test.jsonl`

    - `modalign eval runs/compare/best test.jsonl --out answers.jsonl --json`

    - `modalign eval runs/compare/best presence.jsonl --task pope`

    - `modalign eval runs/compare/best questions.jsonl --task choice --letters --seed 1`

    - `modalign eval FORGOT forms.jsonl --task unlearning --knew MODEL --retain retain.jsonl --out runs/forgotten`

    - `modalign eval runs/tuned/best --suite text --suite-data suites --against my-llm --out runs/text`

    - `modalign eval runs/compare/best test.jsonl --shots 1,2,4 --shots-from train.jsonl`

    - `modalign eval runs/compare/best test.jsonl --corrupt noise,blur --severity 1,3,5 --out runs/robust`

    - `modalign eval my-model --task counterfact --edits edits.json --patch fix.safetensors --text held-out.txt`
    """
    from modalign.cli.evaluate_conditions import evaluate_conditions, kind_of
    from modalign.cli.evaluate_edits import TASKS, check_options, evaluate_edits
    from modalign.files import check_free

    if suite is not None:
        from modalign.cli.evaluate_suite import evaluate_suite

        foreign: dict[str, Any] = {
            "a data file": data, "--task": task != "exact", "--objects": objects,
            "--edits": edits, "--text": text, "--no-generate": no_generate, "--knew": knew,
            "--retrained": retrained, "--retain": retain, "--attacks": attacks, "--train": train,
            "--skip-broken": skip_broken, "--columns": columns, "--shots-from": shots_from,
            "--rationale": rationale, "--corrupt": corrupt, "--severity": severity,
        }  # fmt: skip
        _refuse(foreign, "is not for --suite")
        if form == "both":
            raise UsageError("--suite asks in one form: --form plain or --form chat")
        evaluate_suite(
            model,
            suite_data,
            against=against or [],
            options={
                "suite": suite,
                "parts": tuple(filter(None, (part.strip() for part in (parts or "").split(",")))),
                "form": "chat" if form == "chat" else "plain",
                "shots": _whole("--shots", shots),
                "seed": seed,
                "limit": limit,
                "batch_size": batch_size,
                "max_new_tokens": max_new_tokens or 256,
                "letters": letters,
                **{k: v for k, v in (("orders", orders), ("random", random_weights)) if v is not None},
            },
            patches=patch or [],
            control_tokens=control_token or [],
            device=device or "auto",
            out=out,
            resume=resume,
            overwrite=overwrite,
            json_output=json_output,
        )  # fmt: skip
        return
    max_new_tokens = max_new_tokens or 32
    of_suite: dict[str, Any] = {
        "--suite-data": suite_data, "--parts": parts, "--against": against, "--orders": orders,
        "--random-weights": random_weights is not None,
    }  # fmt: skip
    _refuse(of_suite, "is for --suite")
    conditions: dict[str, Any] = {
        "shots": shots, "shots_from": shots_from, "corrupt": corrupt, "severity": severity,
        "rationale": rationale,
    }  # fmt: skip
    kind = kind_of(**conditions)
    if kind is None and resume:
        raise UsageError("--resume is for --suite, --shots, --corrupt and --rationale")
    if kind is not None and task in ("unlearning", *TASKS):
        raise UsageError(f"{kind} is for tasks of data files, not for {task}")
    if task == "unlearning":
        from modalign.cli.evaluate_forgetting import evaluate_forgetting

        foreign = {"--letters": letters, "--objects": objects, "--edits": edits, "--text": text, "--limit": limit,
                   "--train": train, "--columns": columns, "--control-token": control_token}  # fmt: skip
        _refuse(foreign, "is not for --task unlearning")
        evaluate_forgetting(
            model,
            data,
            knew=knew,
            never_knew=never_knew,
            retrained=retrained,
            retain=retain,
            attacks=attacks,
            out=out,
            overwrite=overwrite,
            patches=patch or [],
            seed=seed,
            device=device or "auto",
            max_new_tokens=max_new_tokens,
            json_output=json_output,
        )
        return
    of_forgetting = {
        "--knew": knew,
        "--retrained": retrained,
        "--retain": retain,
        "--attacks": attacks,
    }
    _refuse(of_forgetting, "is for --task unlearning")
    of_data = {
        "--letters": letters,
        "--objects": objects,
        "--skip-broken": skip_broken,
        "--train": train,
        "--columns": columns,
    }
    of_edits = {"--edits": edits, "--text": text, "--no-generate": no_generate,
                "--form": form if form != "auto" else None}  # fmt: skip
    check_options(task, data, of_data, of_edits)
    if kind is not None:
        assert data is not None
        evaluate_conditions(
            model,
            data,
            kind,
            task={"name": task, "letters": letters, "objects": objects, "seed": seed},
            opening={
                "limit": limit, "skip_broken": skip_broken or "0%", "columns": columns,
                "device": device or "auto", "control_tokens": control_token or [],
                "patches": patch or [],
            },
            run={"out": out, "resume": resume, "overwrite": overwrite, "train": train},
            max_rationale_tokens=max_rationale_tokens,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            json_output=json_output,
            **conditions,
        )  # fmt: skip
        return
    if out is not None:
        check_free(out, overwrite=overwrite)
    if task in TASKS:
        assert edits is not None
        evaluate_edits(
            model,
            task,
            edits,
            patches=patch or [],
            text=text,
            out=out,
            limit=limit,
            form=form,
            generate=not no_generate,
            seed=seed,
            control_tokens=control_token or [],
            device=device,
            json_output=json_output,
        )
        return
    assert data is not None
    from modalign.cli.evaluate_data import evaluate_data

    evaluate_data(
        model,
        data,
        task={"name": task, "letters": letters, "objects": objects, "seed": seed},
        json_output=json_output,
        out=out,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        limit=limit,
        skip_broken=skip_broken or "0%",
        train=train,
        columns=columns,
        patches=patch or [],
        control_tokens=control_token or [],
        device=device or "auto",
    )


def _refuse(given: dict[str, Any], why: str) -> None:
    """Refuse options that were given to another kind of evaluation."""
    if wrong := [name for name, value in given.items() if value]:
        raise UsageError(f"{', '.join(wrong)} {why}")


def _whole(name: str, text: str | None) -> int | None:
    """Read a whole number of zero or more."""
    if text is None:
        return None
    if not text.isdecimal():
        raise UsageError(f"{name} {text!r} is not a whole number")
    return int(text)
