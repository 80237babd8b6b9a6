"""Idefics's inputs, and training's prompts: the processor of a model saved as that class.

transformers' IdeficsProcessor puts marks and a begin token of its own into every prompt and keeps no
chat template (docs/export.md).

This file imports only torch, transformers and its siblings: it is copied into exported models.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature

from modalign.models.processing import ModalignProcessor


class ModalignIdeficsProcessor(ModalignProcessor):
    """The composed model's processor, with images as Idefics reads them: row by row, with a mask."""

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """As the composed model's, but for the images of B texts of T tokens.

        ``pixel_values`` (B, n, 3, H, W), n images in the row that has most, zeros behind the others';
        ``image_attention_mask`` (B, T, n), which image each position reads.

        Raises:
            ValueError: placeholders and images differ in number, or other than PyTorch's tensors are
                asked for.
        """
        if kwargs.get("return_tensors") not in (None, "pt"):
            raise ValueError(
                f"Idefics reads PyTorch's tensors: return_tensors is {kwargs['return_tensors']!r}"
            )
        kwargs["return_tensors"] = "pt"
        found = super().__call__(images=images, text=text, **kwargs)
        found.update(self.beside(found["input_ids"], found.get("pixel_values")))
        return found

    def beside(self, ids: Tensor, pixels: Tensor | None = None) -> dict[str, Tensor]:
        """What the class takes beside token ids.

        A position reads the last image before it in its row. The class takes no text alone: it is
        given one blank image that nothing reads.

        Args:
            ids: (B, T).
            pixels: (n, 3, H, W) of the whole batch in reading order; None: there are no images.

        Raises:
            ValueError: placeholders and images differ in number.
        """
        places = ids == self.image_token_id
        counts = places.sum(dim=1)
        if pixels is None:
            pixels = self._blank()[:0]
        if int(counts.sum()) != len(pixels):
            raise ValueError(
                f"{int(counts.sum())} {self.image_token} placeholders for {len(pixels)} images"
            )
        most = max(int(counts.max()), 1)
        rows = pixels.new_zeros(len(ids), most, *pixels.shape[1:])
        rows[torch.arange(most) < counts[:, None]] = pixels
        read = places.cumsum(dim=1)[..., None] == torch.arange(1, most + 1)
        return {"pixel_values": rows, "image_attention_mask": read.long()}

    def _blank(self) -> Tensor:
        """(1, 3, H, W), an image of the size that the image processor gives."""
        black = torch.zeros(3, 64, 64, dtype=torch.uint8)
        found: Tensor = self.image_processor(images=[black], return_tensors="pt")["pixel_values"]
        return found
