"""Saved models answer as the model that was saved, here and where modalign cannot be imported."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors import safe_open
from tokenizers import processors
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteForCausalLM,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2ForCausalLM,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from modalign.chat_templates import turn_end_ids
from modalign.connectors.base import Widths
from modalign.connectors.converters.linear import LinearConnector
from modalign.connectors.registry import connectors
from modalign.data.records import Media, Message, Record, Source
from modalign.data.supervision import template_messages, tokenise
from modalign.errors import ModalignError, UsageError
from modalign.models import ModalignForConditionalGeneration, ModalignProcessor
from modalign.models.asking import conversation_of
from modalign.models.compose import (
    DEFAULT_CHAT_TEMPLATE,
    IMAGE_TOKEN,
    LanguageModel,
    compose,
    load_language_model,
    prepare_tokenizer,
)
from modalign.models.encoders.image import load_image_encoder
from modalign.models.export import (
    Expected,
    SavedModel,
    folder,
    load_model,
    multimodal_template,
    observe,
    save_model,
    verify_in_clean_process,
    verify_saved,
)
from modalign.models.export.remote_code import NotCopyableError, write_code
from modalign.starter import language, vision

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}\
{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}\
{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}\
{% set system_message = false %}{% endif %}{% for message in loop_messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate') }}{% endif %}\
{% if loop.index0 == 0 and system_message != false %}\
{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}\
{% else %}{% set content = message['content'] %}{% endif %}\
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}\
{% endfor %}"""

LEADING_SPACE = "\n  {% for message in messages %}\n  {{ message['content'] }}\n{% endfor %}\nend\n"

TEMPLATES = {
    "starter": language.CHAT_TEMPLATE,
    "default": DEFAULT_CHAT_TEMPLATE,
    "chatml": CHATML,
    "llama2": LLAMA2,
    "leading space": LEADING_SPACE,
}


@pytest.fixture(scope="module")
def plain_tokenizer() -> PreTrainedTokenizerFast:
    return language.build_tokenizer()


def tokenizer_with(
    plain: PreTrainedTokenizerFast, template: str | None, *, adds_bos: bool = False
) -> PreTrainedTokenizerFast:
    tokenizer = copy.deepcopy(plain)
    tokenizer.chat_template = template
    marks = ["<|im_start|>", "<|im_end|>", "<s>"]
    tokenizer.add_special_tokens(
        {"extra_special_tokens": marks[:2], "bos_token": marks[2]},
        replace_extra_special_tokens=False,
    )
    if adds_bos:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.bos_token_id)]
        )
        assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    prepare_tokenizer(tokenizer)
    return tokenizer


def picture(seed: int) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 255, (60, 50, 3), dtype=np.uint8)
    return Image.fromarray(values)


def asked(*parts: str | Image.Image) -> dict:
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "image": part}
        for part in parts
    ]
    return {"role": "user", "content": content}


CONVERSATIONS = [
    [asked(picture(0), "which digit is this?")],
    [asked("hi")],
    [
        asked("left: ", picture(1), " right: ", picture(2), " which is larger?"),
        {"role": "assistant", "content": "three"},
        asked("why?"),
    ],
]
NEW = 4  # greedy tokens


# --- the models ---


def small(kind: type, vocabulary: int, **options: object):
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    ends = {"eos_token_id": 1, "bos_token_id": None, "pad_token_id": 0}
    if kind is GPT2LMHeadModel:
        config = GPT2Config(
            vocab_size=vocabulary, n_embd=32, n_layer=3, n_head=4, n_positions=256, **ends
        )
    else:
        of = kind.config_class
        if kind is GraniteForCausalLM:
            options["logits_scaling"] = 2.0
        config = of(vocab_size=vocabulary, **sizes, **heads, **ends, **options)
    return kind(config)


TOWERS = {
    "siglip": lambda: SiglipVisionModel(vision.build_config()),
    "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**_tower())),
    "vit": lambda: ViTModel(ViTConfig(**_tower())),
    "registers": lambda: Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(**(_tower() | {"num_register_tokens": 4}))
    ),
}


def _tower() -> dict:
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 48,
        "patch_size": 8,
    }


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    made = {}
    for name, build in TOWERS.items():
        torch.manual_seed(2)
        path = tmp_path_factory.mktemp(name)
        build().eval().save_pretrained(path)
        if name == "siglip":
            vision.build_processor().save_pretrained(path)
        else:
            size = {"height": 48, "width": 48}
            CLIPImageProcessorPil(size=size, crop_size=size).save_pretrained(path)
        made[name] = str(path)
    return made


def joined(
    model,
    tokenizer,
    tower: str | None,
    connector: str,
    layer: int = -2,
    options: dict | None = None,
) -> tuple[ModalignForConditionalGeneration, ModalignProcessor]:
    """Composed, and every weight of the connector moved: gates that start at zero are open."""
    torch.manual_seed(3)
    encoder = load_image_encoder(tower, layer=layer)
    made, processor = compose(
        LanguageModel("tiny", model, tokenizer), encoder, connector, options=options
    )
    with torch.no_grad():
        for parameter in made.connectors.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return made.eval(), processor


@dataclass
class Case:
    saved: SavedModel
    model: ModalignForConditionalGeneration
    processor: ModalignProcessor
    difference: float
    seen: dict[str, Tensor]


EXTRA = {
    # name: (language model, tied, template, adds a begin mark, tower, connector, options)
    "clip-qwen2": (Qwen2ForCausalLM, False, CHATML, False, "clip", "mlp", None),
    "clip-llama-linear": (LlamaForCausalLM, True, LLAMA2, True, "clip", "linear", None),
    "vit-llama": (LlamaForCausalLM, False, None, True, "vit", "mlp", None),
    "siglip-chatml-bos": (LlamaForCausalLM, True, CHATML, True, "siglip", "mlp", None),
    "registers": (LlamaForCausalLM, True, None, False, "registers", "mlp", None),
    "siglip-gpt2": (GPT2LMHeadModel, True, None, False, "siglip", "mlp", None),
    "qwen2-resampler": (Qwen2ForCausalLM, True, CHATML, True, "clip", "resampler", None),
    "gpt2-gated": (GPT2LMHeadModel, True, None, False, "vit", "gated_cross_attention", None),
    "qwen2-adapter": (Qwen2ForCausalLM, False, CHATML, False, "siglip", "llama_adapter", None),
    "scaled-logits": (GraniteForCausalLM, True, None, False, "siglip", "mlp", None),
    "mlp-depth-3": (LlamaForCausalLM, False, None, False, "clip", "mlp", {"depth": 3}),
}
NATIVE = {"linear", "mlp", "clip-qwen2", "clip-llama-linear", "vit-llama", "siglip-chatml-bos"}
NAMES = [*connectors(), *EXTRA]


@pytest.fixture(scope="module")
def cases(
    towers: dict[str, str],
    plain_tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Case]:
    root = tmp_path_factory.mktemp("saved")
    made: dict[str, Case] = {}
    for name in NAMES:
        kind, tied, template, bos, tower, connector, options = EXTRA.get(
            name, (LlamaForCausalLM, True, language.CHAT_TEMPLATE, False, "siglip", name, None)
        )
        tokenizer = tokenizer_with(plain_tokenizer, template, adds_bos=bos)
        llm = small(kind, len(plain_tokenizer), tie_word_embeddings=tied)
        raw = connectors()[connector].raw_input
        path = None if raw else towers[tower]
        layer = -1 if name in connectors() else -2
        model, processor = joined(llm, tokenizer, path, connector, layer, options)
        saved = save_model(model, processor, root / name, card="| method | accuracy |")
        seen = observe(model, processor, CONVERSATIONS, NEW)
        difference = verify_saved(
            saved.folder, model, processor, CONVERSATIONS, max_new_tokens=NEW, seen=seen
        )
        made[name] = Case(saved, model, processor, difference, seen)
    return made


@pytest.fixture(scope="module")
def clean(cases: dict[str, Case]) -> dict[str, float]:
    expected = [
        Expected(case.saved.folder, CONVERSATIONS, case.seen, max_new_tokens=NEW)
        for case in cases.values()
    ]
    return dict(zip(cases, verify_in_clean_process(expected), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_saved_models_answer_the_same(
    name: str, cases: dict[str, Case], clean: dict[str, float]
) -> None:
    case = cases[name]
    assert case.saved.kind == ("native:Llava" if name in NATIVE else "remote-code")
    assert case.difference <= 1e-5
    assert clean[name] <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_comparison_would_see_another_connector(name: str, cases: dict[str, Case]) -> None:
    """The comparison has teeth: other connector weights are seen in the logits."""
    case = cases[name]
    other = copy.deepcopy(case.model)
    with torch.no_grad():
        for parameter in other.connectors.parameters():
            parameter.copy_(0.9 * parameter.flip(0))  # codes are chosen alike at any scale
    with pytest.raises(ModalignError, match=r"differ"):
        verify_saved(case.saved.folder, other, case.processor, CONVERSATIONS[:1])


@pytest.mark.parametrize("name", NAMES)
def test_batched_and_single_answers_agree(name: str, cases: dict[str, Case]) -> None:
    seen = cases[name].seen
    for row in range(len(CONVERSATIONS)):
        together, alone = seen["batched.greedy"][row], seen[f"single.{row}.greedy"][0]
        assert together[: len(alone)].tolist() == alone.tolist()


@pytest.mark.parametrize("connector", ["mlp", "resampler"])
def test_no_place_of_this_machine_is_saved(
    connector: str, towers: dict[str, str], tmp_path: Path
) -> None:
    parts = tmp_path / "parts"
    small(LlamaForCausalLM, len(language.build_tokenizer())).save_pretrained(parts)
    language.build_tokenizer().save_pretrained(parts)
    llm = load_language_model(str(parts))
    encoder = load_image_encoder(towers["clip"])
    save_model(*compose(llm, encoder, connector), tmp_path / "model")
    for file in (tmp_path / "model").iterdir():
        if file.suffix != ".safetensors":
            text = file.read_text()
            assert "name_or_path" not in text or file.suffix == ".py", file.name
            assert str(parts) not in text, file.name
            assert towers["clip"] not in text, file.name


@pytest.mark.parametrize("name", NAMES)
def test_no_pickle_and_no_import_of_modalign(name: str, cases: dict[str, Case]) -> None:
    files = {path.name for path in cases[name].saved.folder.iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "README.md"} <= files
    assert {"processor_config.json", "tokenizer.json", "chat_template.jinja"} <= files
    assert not [file for file in files if file.endswith((".bin", ".pt", ".pkl"))]
    code = sorted(file for file in files if file.endswith(".py"))
    assert bool(code) == (name not in NATIVE)
    for file in code:
        for line in (cases[name].saved.folder / file).read_text().splitlines():
            assert not line.lstrip().startswith(("from modalign", "import modalign"))


def test_only_the_connector_in_use_travels(cases: dict[str, Case]) -> None:
    code = {path.name for path in cases["gated_cross_attention"].saved.folder.glob("*.py")}
    assert "connectors_perceivers_gated_cross_attention.py" in code
    assert "connectors_perceivers_resampler.py" in code  # its parent's part
    assert "connectors_perceivers_qformer.py" not in code
    alone = {path.name for path in cases["qformer"].saved.folder.glob("*.py")}
    assert "connectors_perceivers_qformer.py" in alone
    assert "connectors_perceivers_qformer_stage_one.py" not in alone
    both = {path.name for path in cases["c_abstractor"].saved.folder.glob("*.py")}
    assert "connectors_converters_shared.py" in both


def test_native_folder_is_read_by_the_plain_class_with_canonical_keys(
    cases: dict[str, Case],
) -> None:
    case = cases["clip-qwen2"]
    with safe_open(case.saved.folder / "model.safetensors", "pt") as tensors:
        keys = set(tensors.keys())
        assert tensors.metadata() == {"format": "pt"}
    assert "vision_tower.vision_model.embeddings.class_embedding" in keys
    assert "language_model.model.embed_tokens.weight" in keys
    assert "language_model.lm_head.weight" in keys
    assert {"multi_modal_projector.linear_1.weight", "multi_modal_projector.linear_2.bias"} <= keys
    with safe_open(cases["mlp"].saved.folder / "model.safetensors", "pt") as tensors:
        assert "language_model.lm_head.weight" not in set(tensors.keys())  # tied
    loaded, report = LlavaForConditionalGeneration.from_pretrained(
        case.saved.folder, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert loaded.config.vision_feature_select_strategy == "default"
    for (name, ours), theirs in zip(
        case.model.encoders["image"].tower.state_dict().items(),
        loaded.model.vision_tower.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(ours, theirs), name


def test_load_model_needs_no_trust_in_code(cases: dict[str, Case]) -> None:
    model, processor = load_model(cases["qformer"].saved.folder)
    assert type(model) is ModalignForConditionalGeneration
    assert type(processor) is ModalignProcessor
    model, _ = load_model(cases["mlp"].saved.folder)
    assert type(model) is LlavaForConditionalGeneration


def test_auto_classes_know_our_own_classes(cases: dict[str, Case]) -> None:
    path = cases["resampler"].saved.folder
    assert type(AutoModelForImageTextToText.from_pretrained(path)) is (
        ModalignForConditionalGeneration
    )
    assert type(AutoProcessor.from_pretrained(path)) is ModalignProcessor


def test_end_ids_hold_the_mark_that_ends_a_turn(cases: dict[str, Case]) -> None:
    case = cases["clip-qwen2"]
    end = case.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    values = json.loads((case.saved.folder / "generation_config.json").read_text())
    assert values["eos_token_id"] == [1, end]
    alone = json.loads((cases["resampler"].saved.folder / "generation_config.json").read_text())
    assert alone["eos_token_id"] == 1


def test_card_names_parts_and_holds_the_measured_text(cases: dict[str, Case]) -> None:
    text = (cases["registers"].saved.folder / "README.md").read_text()
    assert "| method | accuracy |" in text
    assert "dinov2_with_registers" in text
    assert "trust_remote_code=True" in text
    assert "further tokens" in text  # why it is no Llava
    assert "logits" in cases["scaled-logits"].saved.notes[0]
    assert "trust_remote_code" not in (cases["mlp"].saved.folder / "README.md").read_text()


# --- replacing folders ---


def test_older_model_stays_until_the_new_one_is_whole(
    cases: dict[str, Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, target = cases["resampler"], tmp_path / "model"
    save_model(case.model, case.processor, target, card="first")
    (target / "stale.txt").write_text("old")

    def fail(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(folder, "write_code", fail)
        with pytest.raises(OSError, match="no space"):
            save_model(case.model, case.processor, target, card="second")
    assert "first" in (target / "README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    save_model(case.model, case.processor, target, card="third")
    assert "third" in (target / "README.md").read_text()
    assert not (target / "stale.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_folders_that_hold_something_else_are_refused(
    cases: dict[str, Case], tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not a model"):
        save_model(cases["mlp"].model, cases["mlp"].processor, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    with pytest.raises(UsageError, match="no model"):
        load_model(tmp_path)


def test_unmerged_lora_is_refused(cases: dict[str, Case], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = copy.deepcopy(cases["mlp"].model)
    model.language_model = get_peft_model(
        model.language_model, LoraConfig(r=2, target_modules=["q_proj"])
    )
    with pytest.raises(ModalignError, match="merge"):
        save_model(model, cases["mlp"].processor, tmp_path / "lora")


def test_merged_lora_is_saved(cases: dict[str, Case], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    for name in ("mlp", "gated_cross_attention"):
        model = copy.deepcopy(cases[name].model)
        lora = get_peft_model(
            model.language_model,
            LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False),
        )
        model.language_model = lora.merge_and_unload()
        saved = save_model(model, cases[name].processor, tmp_path / name)
        assert saved.kind == cases[name].saved.kind
        assert verify_saved(saved.folder, model, cases[name].processor, CONVERSATIONS) <= 1e-5


def test_half_precision_and_mixed_precision(cases: dict[str, Case], tmp_path: Path) -> None:
    for name, which in (("mlp", "all"), ("resampler", "all"), ("resampler", "llm")):
        model = copy.deepcopy(cases[name].model)
        (model if which == "all" else model.language_model).to(torch.bfloat16)
        target = tmp_path / f"{name}-{which}"
        saved = save_model(model, cases[name].processor, target)
        assert saved.kind == cases[name].saved.kind
        loaded, _ = load_model(target)
        dtype = torch.bfloat16 if which == "all" else torch.float32
        assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
        if which == "all":
            assert verify_saved(target, model, cases[name].processor, CONVERSATIONS[:1]) <= 2e-2


# --- code that cannot travel ---


def test_imported_encoder_is_saved_with_a_note(
    plain_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_encoder.py").write_text(
        "from torch import nn\n"
        "class Encoder(nn.Module):\n"
        "    def __init__(self, width):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(3, width, 8, 8)\n"
        "    def forward(self, pixels):\n"
        "        return self.conv(pixels)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    tokenizer = tokenizer_with(plain_tokenizer, language.CHAT_TEMPLATE)
    encoder = load_image_encoder("own_encoder:Encoder", options={"width": 12})
    llm = LanguageModel("tiny", small(LlamaForCausalLM, len(plain_tokenizer)), tokenizer)
    model, processor = compose(llm, encoder, "mlp")
    saved = save_model(model, processor, tmp_path / "model")
    assert saved.kind == "remote-code"
    assert any("own_encoder:Encoder" in note for note in saved.notes)
    assert "must be importable" in (saved.folder / "README.md").read_text()
    assert verify_saved(saved.folder, model, processor, CONVERSATIONS) == 0.0


def own_connector(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> type[LinearConnector]:
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    __import__(name)
    return sys.modules[name].Own


OWN = """\
from modalign.connectors.converters.linear import LinearConnector
{}

class Own(LinearConnector):
    name = "own"
"""


def test_third_party_connector_travels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = own_connector(tmp_path, monkeypatch, "own_fine", OWN.format("import math"))
    out = tmp_path / "out"
    out.mkdir()
    files = write_code(out, [own])
    assert {"own_fine.py", "connectors_converters_linear.py", "connectors_registry.py"} <= {*files}
    text = (out / "own_fine.py").read_text()
    assert "from .connectors_converters_linear import LinearConnector" in text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("import numpy", "own_.*:2 imports 'numpy'"),
        ("def late():\n    from scipy import ndimage", "imports 'scipy'"),
        ("import modalign.errors", "cannot be made relative"),
        ("from modalign import errors", "the package 'modalign'"),
        ("from modalign.data import images", "the package 'modalign.data'"),
        ("from modalign.data import records, \\\n    images", "package"),
    ],
)
def test_code_that_cannot_travel_is_named(
    line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"own_{abs(hash(line))}"
    own = own_connector(tmp_path, monkeypatch, name, OWN.format(line))
    with pytest.raises(NotCopyableError, match=message):
        write_code(tmp_path, [own])
    own(Widths(2, 2, 1, None))


# --- templates ---

TALK = [
    Message("system", ("be brief",)),
    Message("user", ("first ", Media("image", "a.png"), " then ", Media("image", "b.png"), "?")),
    Message("assistant", ("yes",)),
    Message("user", ("and now?",)),
    Message("assistant", ("no",)),
]


def with_parts(messages: list[Message]) -> list[dict]:
    return [
        {
            "role": message.role,
            "content": [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                for part in message.parts
            ],
        }
        for message in messages
    ]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("upto", [2, 4, 5])
def test_wrapped_templates_give_the_ids_of_training(
    name: str, upto: int, plain_tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer = tokenizer_with(plain_tokenizer, TEMPLATES[name])
    wrapped = multimodal_template(TEMPLATES[name])
    asks = {"add_generation_prompt": upto < 5, "tokenize": True, "return_dict": True}
    messages = template_messages(TALK[:upto], tokenizer)
    trained = tokenizer.apply_chat_template(messages, **asks)["input_ids"]
    assert trained.count(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)) == 2
    for given in (messages, with_parts(TALK[:upto])):
        ids = tokenizer.apply_chat_template(given, chat_template=wrapped, **asks)["input_ids"]
        assert ids == trained


@pytest.mark.parametrize("name", ["starter", "default"])
def test_wrapped_templates_keep_generation_marks(
    name: str, plain_tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer = tokenizer_with(plain_tokenizer, TEMPLATES[name])
    record = Record("r", tuple(TALK), Source("f", 1))
    before = tokenise(record, tokenizer)
    tokenizer.chat_template = multimodal_template(tokenizer.chat_template)
    after = tokenise(record, tokenizer)
    assert before.ids.tolist() == after.ids.tolist()
    assert before.supervised.tolist() == after.supervised.tolist()
    assert 0 < after.supervised.sum() < len(after.ids)


def test_wrapping_twice_changes_nothing_and_unknown_parts_are_refused(
    plain_tokenizer: PreTrainedTokenizerFast,
) -> None:
    wrapped = multimodal_template(CHATML)
    assert multimodal_template(wrapped) == wrapped
    talk = [{"role": "user", "content": [{"type": "video"}]}]
    with pytest.raises(Exception, match="not video"):
        plain_tokenizer.apply_chat_template(talk, chat_template=wrapped)


def test_base_models_get_the_begin_mark_their_tokenizer_adds(
    plain_tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer = tokenizer_with(plain_tokenizer, None, adds_bos=True)
    talk = [{"role": "user", "content": "hi"}]
    ids = tokenizer.apply_chat_template(talk, tokenize=True, return_dict=True)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id


def test_turn_end_is_read_from_the_template(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    found = {
        name: plain_tokenizer_ids(tokenizer_with(plain_tokenizer, template))
        for name, template in TEMPLATES.items()
    }
    assert found == {
        "starter": ["<|end|>"],
        "default": ["<|end|>"],
        "chatml": ["<|im_end|>"],
        "llama2": ["<|end|>"],
        "leading space": [],
    }


def plain_tokenizer_ids(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    return list(tokenizer.convert_ids_to_tokens(turn_end_ids(tokenizer)))


def test_conversation_of_a_record(tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast) -> None:
    picture(0).save(tmp_path / "a.png")
    media = Media("image", str(tmp_path / "a.png"))
    turns = (Message("user", (media, "what?")), Message("assistant", ("five",)))
    (turn,) = conversation_of(Record("r", turns, Source("f", 1)), plain_tokenizer)
    assert [part["type"] for part in turn["content"]] == ["image", "text"]
    assert turn["content"][0]["image"].size == (50, 60)
