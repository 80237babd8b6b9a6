"""Configuration, model and processor of a composed multimodal model, and its export.

Importing this package registers its classes with transformers' Auto classes.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from modalign.models.configuration import ModalignConfig, ModalignMediaConfig
from modalign.models.media import ModalignMedia
from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.models.processing import ModalignProcessor

AutoConfig.register(ModalignConfig.model_type, ModalignConfig, exist_ok=True)
for _auto in (AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    _auto.register(ModalignConfig, ModalignForConditionalGeneration, exist_ok=True)
AutoConfig.register(ModalignMediaConfig.model_type, ModalignMediaConfig, exist_ok=True)
AutoModel.register(ModalignMediaConfig, ModalignMedia, exist_ok=True)
AutoProcessor.register(ModalignConfig, ModalignProcessor, exist_ok=True)

__all__ = ["ModalignConfig", "ModalignForConditionalGeneration", "ModalignProcessor"]
