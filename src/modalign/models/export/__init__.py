"""A composed model as a Hugging Face folder that loads where modalign is not installed."""

from modalign.models.export.folder import Kind, SavedModel, load_model, save_model
from modalign.models.export.verify import (
    Expected,
    verify_in_clean_process,
    verify_saved,
)
from modalign.models.probe import Conversation, observe
from modalign.models.templates import multimodal_template

__all__ = [
    "Conversation",
    "Expected",
    "Kind",
    "SavedModel",
    "load_model",
    "multimodal_template",
    "observe",
    "save_model",
    "verify_in_clean_process",
    "verify_saved",
]
