"""Processor of a model saved as Idefics: that class's inputs, with the prompts of training.

transformers' IdeficsProcessor adds its own markers and begin token to every prompt and keeps no
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
    """The composed model's processor, with images in Idefics's form: row by row, with a mask."""

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """Process as the composed model's, except for the images of B texts of T tokens.

        ``pixel_values`` is (B, n, 3, H, W), n being the largest number of images in a row, padded with zeros;
        ``image_attention_mask`` (B, T, n) says which image each position reads.

        Raises:
            ValueError: placeholders and images differ in number, or tensors other than PyTorch's are
                requested.
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
        """Return the class's inputs besides token ids.

        A position reads the last image before it in its row. The class requires an image, so text alone
        gets a blank one that nothing reads.

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
        """Return a blank image (1, 3, H, W) of the image processor's size."""
        black = torch.zeros(3, 64, 64, dtype=torch.uint8)
        found: Tensor = self.image_processor(images=[black], return_tensors="pt")["pixel_values"]
        return found
