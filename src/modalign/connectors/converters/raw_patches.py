"""``raw_patches``: one affine map from raw pixel patches into the LLM, without an encoder, as in Fuyu-8B.

Shapes: features (B, N, d) are the flattened patches themselves, passed on by an identity encoder
(d = patch height x patch width x channels; Fuyu: 30 x 30 x 3 = 2700) -> tokens (B, N, D).
Source: Fuyu-8B (Adept AI, technical report of October 2023; there is no arXiv paper).
Parameters: dD + D.
Recipe: the LLM is trained end to end together with the map; no learning rate was published.
Deliberately changed: the special token that Fuyu puts at the end of each row of patches belongs to
the text of the prompt, not to the connector, and is left to the caller.
Initialisation: torch default.
"""

from __future__ import annotations

from modalign.connectors.converters.linear import LinearConnector


class RawPatchesConnector(LinearConnector):
    """One affine map from flattened patches to D, without an encoder (Fuyu-8B)."""

    name = "raw_patches"
    group = "no encoder"
    papers = ("Fuyu-8B (Adept AI, 2023)",)
    export_target = "remote-code"
    raw_input = True
