"""Tools and chains as configuration: what is in a YAML, TOML or JSON file, checked."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from modalign.data.modalities import modality_names
from modalign.errors import choose
from modalign.tools.base import MAX_CHARACTERS, TIMEOUT


def _known(modality: str) -> str:
    if modality not in modality_names():
        raise ValueError(f"no modality {modality!r}: {choose(modality, modality_names())}")
    return modality


class CommonSpec(BaseModel):
    """What every tool's description may say.

    Attributes:
        name: an identifier; default: the kind's own.
        description: for people and for a language model that chooses tools; default: the kind's own.
        modalities: of the media it is given; default: the kind's own.
        arguments: given with every call of a chain.
        timeout: seconds after which a call is given up.
        max_characters: of a result.
    """

    model_config = ConfigDict(extra="forbid")

    name: str | None = None
    description: str | None = None
    modalities: tuple[Annotated[str, AfterValidator(_known)], ...] | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)
    timeout: PositiveFloat = TIMEOUT
    max_characters: PositiveInt = MAX_CHARACTERS


class CallableSpec(CommonSpec):
    """A Python callable: ``package.module:function`` or ``file.py:function``.

    Attributes:
        target: where it is.
        trusted: run it in this process (no start-up, shared memory), where it cannot be killed.
        reads_annotations: default: the function's own attribute of this name, else no.
        version: part of what results are remembered under; raise it when something changed that the
            source file does not show.
    """

    kind: Literal["callable"] = "callable"
    target: str
    trusted: bool = False
    reads_annotations: bool | None = None
    version: str = ""


class PipelineSpec(CommonSpec):
    """A transformers pipeline.

    Attributes:
        task: its name in transformers, e.g. ``object-detection``.
        model: hub name or folder.
        device: e.g. ``cpu``, ``cuda:0``; default: transformers' choice.
        options: given to every call of the pipeline, e.g. ``{threshold: 0.7}``.
    """

    kind: Literal["pipeline"] = "pipeline"
    task: str
    model: str
    device: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)


class OcrSpec(CommonSpec):
    """Reading text in pictures.

    Attributes:
        engine: ``rapidocr`` (onnxruntime, models in its wheel) or ``tesseract`` (the installed program).
        min_score: lines of a lower confidence are left out.
        language: of tesseract, e.g. ``eng+deu``.
    """

    kind: Literal["ocr"] = "ocr"
    engine: Literal["rapidocr", "tesseract"] = "rapidocr"
    min_score: Annotated[float, Field(ge=0, le=1)] = 0.5
    language: str | None = None


class SpeechSpec(CommonSpec):
    """Writing down speech by pocketsphinx, its US English model in the wheel (Whisper: a pipeline).

    Attributes:
        words: the only words that can be said; default: free speech by the built-in language model.
    """

    kind: Literal["speech"] = "speech"
    words: tuple[str, ...] = ()


class McpSpec(CommonSpec):
    """A tool of a Model Context Protocol server.

    Attributes:
        command: program and arguments of a stdio server, or one URL of a streamable HTTP server.
        tool: its name on the server.
        environment: further environment variables of the server.
        media_argument: the argument that the medium goes into; default: found in the input schema.
        media_as: ``path``, ``base64`` or ``data_url``; default: read from the input schema.
    """

    kind: Literal["mcp"] = "mcp"
    command: tuple[str, ...] = Field(min_length=1)
    tool: str
    environment: dict[str, str] = Field(default_factory=dict)
    media_argument: str | None = None
    media_as: Literal["path", "base64", "data_url"] | None = None


class DigitReaderSpec(CommonSpec):
    """The starter's reader of handwritten digits."""

    kind: Literal["digit_reader"] = "digit_reader"


class StructureSpec(CommonSpec):
    """A scene's structure, from the annotations of the record, as lines."""

    kind: Literal["structure"] = "structure"


class TableSpec(CommonSpec):
    """A whole table, as text.

    Attributes:
        form: how it is written.
    """

    kind: Literal["table"] = "table"
    form: Literal["markdown", "csv", "json", "sentences"] = "markdown"


class LayoutSpec(CommonSpec):
    """Where the things are that another tool finds: places, relations, counts.

    Attributes:
        of: a tool whose results have boxes.
        grid: cells per side that places are named by: 2 (``top left``) or 3 (``top``, ``centre``).
        say: what is said.
    """

    kind: Literal["layout"] = "layout"
    of: ToolSpec
    grid: Literal[2, 3] = 3
    say: tuple[Literal["places", "relations", "counts"], ...] = ("places", "relations", "counts")


ToolSpec = Annotated[
    CallableSpec
    | PipelineSpec
    | OcrSpec
    | SpeechSpec
    | McpSpec
    | DigitReaderSpec
    | StructureSpec
    | TableSpec
    | LayoutSpec,
    Field(discriminator="kind"),
]


class ChainSpec(BaseModel):
    """Tools, and how their text is made.

    Attributes:
        tools: asked in order.
        template: a jinja2 template over ``tools``; default: one line per tool, see ``block``.
        budget: tokens that the text may have, counted by the language model's own tokenizer.
    """

    model_config = ConfigDict(extra="forbid")

    tools: list[ToolSpec] = Field(min_length=1)
    template: str | None = None
    budget: PositiveInt = 256


LayoutSpec.model_rebuild()
ChainSpec.model_rebuild()
