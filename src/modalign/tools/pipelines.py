"""Tools that are transformers pipelines, from a hub name or a folder.

Transformers 5 dropped the ``image-to-text`` pipeline: ``image-text-to-text`` replaces it, and the old name
still works here. Weights are read from safetensors only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from modalign.data.images import open_image
from modalign.data.records import Media
from modalign.errors import UsageError, choose
from modalign.tools.base import LINES, HashFile, Json, Signature, Tool

CAPTION = "Describe the image."
_TEXT = {"type": "string"}
_WORDS = {"type": "array", "items": _TEXT}

Call = Callable[[Any, Media, dict[str, Any]], Any]


@dataclass(frozen=True)
class PipelineTask:
    """A pipeline's task as a tool.

    Attributes:
        modality: of the medium.
        description: what it does.
        call: (pipeline, medium, options and arguments) -> its result.
        arguments: besides the medium, name -> JSON schema.
        required: of these.
    """

    modality: str
    description: str
    call: Call
    arguments: dict[str, dict[str, Any]]
    required: tuple[str, ...] = ()


def _on_image(pipe: Any, medium: Media, options: dict[str, Any]) -> Any:
    return pipe(open_image(medium), **options)


def _caption(pipe: Any, medium: Media, options: dict[str, Any]) -> Any:
    image, prompt = open_image(medium), options.pop("prompt", None)
    options.setdefault("return_full_text", False)
    if getattr(pipe.processor, "chat_template", None):
        content = [{"type": "image", "image": image}, {"type": "text", "text": prompt or CAPTION}]
        return pipe(text=[{"role": "user", "content": content}], **options)
    # A captioner without conversations (BLIP, GIT) continues a text: by default an empty one.
    tokenizer = pipe.processor.tokenizer
    start = "" if tokenizer("")["input_ids"] else tokenizer.bos_token or CAPTION
    return pipe(images=image, text=prompt or start, **options)


def _on_document(pipe: Any, medium: Media, options: dict[str, Any]) -> Any:
    return pipe(image=open_image(medium), **options)


def _on_audio(pipe: Any, medium: Media, options: dict[str, Any]) -> Any:
    from modalign.data.audio import open_audio

    rate = pipe.feature_extractor.sampling_rate
    return pipe({"raw": open_audio(medium, rate), "sampling_rate": rate}, **options)


_LABELS = {"candidate_labels": _WORDS}
TASKS = {
    "image-text-to-text": PipelineTask(
        "image", "Describes a picture, or answers a prompt about it.", _caption, {"prompt": _TEXT}
    ),
    "image-classification": PipelineTask("image", "Names what a picture shows.", _on_image, {}),
    "object-detection": PipelineTask("image", "Finds objects with their boxes.", _on_image, {}),
    "zero-shot-image-classification": PipelineTask(
        "image",
        "Says which of some labels fits a picture.",
        _on_image,
        _LABELS,
        ("candidate_labels",),
    ),
    "zero-shot-object-detection": PipelineTask(
        "image", "Finds what some labels name.", _on_image, _LABELS, ("candidate_labels",)
    ),
    "document-question-answering": PipelineTask(
        "image",
        "Answers a question from a picture of a document.",
        _on_document,
        {"question": _TEXT},
        ("question",),
    ),
    "automatic-speech-recognition": PipelineTask(
        "audio", "Transcribes a recording.", _on_audio, {}
    ),
    "audio-classification": PipelineTask(
        "audio", "Names what a recording contains.", _on_audio, {}
    ),
}
ALIASES = {"image-to-text": "image-text-to-text", "document-qa": "document-question-answering"}


class PipelineTool(Tool):
    """A transformers pipeline; its model is loaded before the first call.

    Args:
        task: name of the pipeline.
        model: hub name or folder.
        device: e.g. ``cuda:0``.
        options: given to every call.
        **settings: of :class:`~modalign.tools.base.Tool`.
    """

    def __init__(
        self, task: str, model: str, device: str | None, options: dict[str, Any], **settings: Any
    ) -> None:
        how = TASKS[task]
        super().__init__(**settings, signature=Signature(how.arguments, how.required, LINES))
        self._task, self._model, self._device, self._options = task, model, device, options
        self._lock = threading.Lock()

    @cached_property
    def _pipeline(self) -> Any:
        from transformers import pipeline

        return pipeline(
            self._task,
            model=self._model,
            revision=_revision(self._model),
            device=self._device,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )

    @cached_property
    def parameters(self) -> int:
        """Of the model, counted."""
        return sum(one.numel() for one in self._pipeline.model.parameters())

    def load(self) -> None:
        """Load the model."""
        _ = self._pipeline

    def run(self, medium: Media, **arguments: Any) -> Any:
        """Run the pipeline."""
        with self._lock:
            return TASKS[self._task].call(self._pipeline, medium, {**self._options, **arguments})

    def identity(self, hash_file: HashFile) -> Json:
        """Task, options, transformers' version; the files' content, or the hub's name and revision."""
        content: Json = [self._model, _revision(self._model)]
        if Path(self._model).is_dir():
            files = sorted(path for path in Path(self._model).iterdir() if path.is_file())
            content = {path.name: hash_file(path) for path in files}
        return ["pipeline", self._task, self._options, version("transformers"), content]

    def close(self) -> None:
        """Release the model."""
        self.__dict__.pop("_pipeline", None)


def pipeline_tool(
    task: str, model: str, device: str | None, options: dict[str, Any], **settings: Any
) -> PipelineTool:
    """Return a pipeline from its configuration.

    Raises:
        UsageError: an unknown task, or a folder that does not exist.
    """
    known = ALIASES.get(task, task)
    if known not in TASKS:
        raise UsageError(
            f"the pipeline {task!r} is not supported as a tool; {choose(task, sorted(TASKS))}"
        )
    _revision(model)
    settings["name"] = settings["name"] or known.replace("-", "_")
    settings["description"] = settings["description"] or TASKS[known].description
    settings["modalities"] = settings["modalities"] or (TASKS[known].modality,)
    return PipelineTool(known, model, device, options, **settings)


def _revision(model: str) -> str | None:
    """Return the commit of a hub model, fetched if needed; None for a folder.

    Raises:
        UsageError: there is neither a folder nor such a model.
    """
    if Path(model).is_dir():
        return None
    from transformers.utils import cached_file

    try:
        file = cached_file(model, "config.json")
    except OSError as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"model {model} is not a folder here, and the hub: {reason}") from None
    assert file is not None
    return Path(file).parent.name  # the cache keeps each commit in a folder of its name
