"""``modalign app``: applications of the rooms that the other verbs are made of."""

from __future__ import annotations

import typer

from modalign.cli import (
    app_bundle,
    app_documents,
    app_fingerprint,
    app_items,
    app_link,
    app_transform,
)

app = typer.Typer(
    help="Applications, each with its simple rule and its report.", no_args_is_help=True
)
app.add_typer(app_link.app, name="link")
app.add_typer(app_fingerprint.app, name="fingerprint")
app.add_typer(app_documents.app, name="documents")
app.add_typer(app_bundle.app, name="bundle")
app.add_typer(app_items.app, name="items")
app.add_typer(app_transform.app, name="transform")
