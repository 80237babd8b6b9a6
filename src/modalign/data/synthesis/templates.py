"""Templates: data that defines what to ask about a view, in which words, and the answer.

A template file is YAML. Its texts are Jinja, rendered in the sandbox, so a foreign file can compute its words
but access nothing else. See ``templates/boxes.yaml`` for an example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from modalign.configuration import read_yaml, validated
from modalign.data.synthesis.annotations import From
from modalign.data.synthesis.views import VARIABLES, Words
from modalign.errors import UsageError

BUILT_IN = ("captions", "boxes", "structure", "nlvr")


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Texts = Annotated[list[str], BeforeValidator(_listed), Field(min_length=1)]


class Template(BaseModel):
    """One kind of question.

    Attributes:
        name: unique; a later file's template replaces an earlier one's of the same name.
        each: the view that the question is about.
        question: wordings, one of which is drawn per record; may be empty for a caption.
        answer: its text; an empty one asks nothing.
        when: asks only if this is neither empty nor ``False``.
        skill: the column of an evaluation that the records belong to.
        kind: written into the record's ``kind``: ``caption`` marks captions for recipes.
        options: the possible answers, kept equally frequent.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    each: str
    question: Texts
    answer: str
    skill: str = Field(min_length=1)
    when: str | None = None
    kind: str | None = None
    options: list[str] = Field(default_factory=list)


class TemplateFile(BaseModel):
    """A file of templates.

    Attributes:
        from_: the kind of annotations.
        templates: added to the built-in ones.
        without: names of built-in templates that are left out.
        words: attribute -> value as in the data -> word.
        groups: words for the groups of a structure, in order.
        noun: for objects without an attribute that names them.
        group: the record's group, from ``row``; by default the image.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    from_: From = Field(alias="from")
    templates: list[Template] = Field(default_factory=list)
    without: list[str] = Field(default_factory=list)
    words: dict[str, dict[str, str]] = Field(default_factory=dict)
    groups: list[str] = Field(default_factory=list)
    noun: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class TemplateSet:
    """The templates and words of a build."""

    templates: tuple[Template, ...]
    words: Words
    group: str | None
    texts: tuple[str, ...]  # of the files, for the card's hash


def load_templates(kind: From, files: Sequence[str] = ()) -> TemplateSet:
    """Load the built-in templates of one kind of annotation, with the changes of further files.

    Args:
        kind: which annotations.
        files: paths, or ``nlvr`` for the built-in words and statements of NLVR's scenes.

    Raises:
        UsageError: an invalid file; the message names the field.
    """
    found: dict[str, Template] = {}
    words: dict[str, dict[str, str]] = {}
    groups, noun, group = Words().groups, Words().noun, None
    texts = []
    for name in (kind, *files):
        text = _text_of(name)
        file = _parsed(name, text)
        if file.from_ != kind:
            raise UsageError(f"{name}: its templates read {file.from_}, but --from is {kind}")
        for template in file.templates:
            _check(template, kind, name)
            found[template.name] = template
        if unknown := sorted(set(file.without) - set(found)):
            raise UsageError(
                f"{name}: without lists {', '.join(map(repr, unknown))}, which is not a template"
            )
        found = {key: value for key, value in found.items() if key not in file.without}
        for attribute, said in file.words.items():
            words[attribute] = {**words.get(attribute, {}), **said}
        groups = tuple(file.groups) or groups
        noun, group = file.noun or noun, file.group or group
        texts.append(text)
    if not found:
        raise UsageError("no template is left; list fewer in without")
    return TemplateSet(tuple(found.values()), Words(words, groups, noun), group, tuple(texts))


def _text_of(name: str) -> str:
    if name in BUILT_IN and not Path(name).exists():
        folder = resources.files("modalign.data.synthesis") / "templates"
        return (folder / f"{name}.yaml").read_text(encoding="utf-8")
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the templates {name} cannot be read: {error}") from None


def _parsed(name: str, text: str) -> TemplateFile:
    try:
        values = read_yaml(text) or {}
    except ValueError as error:
        raise UsageError(f"the templates {name} are not YAML: {error}") from None
    return validated(TemplateFile, values, f"the templates {name}")


def _check(template: Template, kind: From, file: str) -> None:
    known = VARIABLES[kind]
    if template.each not in known:
        raise UsageError(
            f"{file}: template {template.name!r} asks about each {template.each!r}; {kind} have "
            f"{', '.join(known)}"
        )


# --- rendering ----------------------------------------------------------------------------------


class Renderer:
    """Renders templates' texts, compiled once."""

    def __init__(self) -> None:
        self.environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, keep_trailing_newline=False
        )
        self.environment.filters |= {"a": with_article, "plural": plural}
        self._compiled: dict[str, Any] = {}

    def __call__(self, text: str, values: dict[str, Any], of: str) -> str:
        """Render a text with a view's variables and collapse white space.

        Raises:
            UsageError: it is not valid Jinja, uses an unknown variable, or does something forbidden.
        """
        try:
            if text not in self._compiled:
                self._compiled[text] = self.environment.from_string(text)
            return " ".join(self._compiled[text].render(values).split())
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            known = ", ".join(sorted(values))
            raise UsageError(
                f"template {of!r}, {text!r}: {error}; its variables are {known}"
            ) from None


def with_article(noun: str) -> str:
    """``a dog``, ``an apple``: chosen by the first letter."""
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


_IRREGULAR = {"person": "people", "man": "men", "woman": "women", "child": "children"}
_IRREGULAR |= {
    "mouse": "mice",
    "knife": "knives",
    "sheep": "sheep",
    "foot": "feet",
    "tooth": "teeth",
}
_IRREGULAR |= {"skis": "skis", "scissors": "scissors", "leaf": "leaves", "shelf": "shelves"}


def plural(noun: str) -> str:
    """Form the plural of an English noun by its last word; use ``words`` in a template for exceptions."""
    before, _, last = noun.rpartition(" ")
    if last.lower() in _IRREGULAR:
        many = _IRREGULAR[last.lower()]
    elif last.endswith(("s", "x", "z", "ch", "sh")):
        many = last + "es"
    elif last.endswith("y") and last[-2:-1] not in ("a", "e", "i", "o", "u", ""):
        many = last[:-1] + "ies"
    else:
        many = last + "s"
    return f"{before} {many}".strip()
