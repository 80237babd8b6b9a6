"""Load an encoder per modality: pretrained weights, or a description derived from the data.

A modality's file offers

* ``load(name, media, options, allow_pickle) -> (spec, encoder)``: the encoder ``name``, configured for
  training media of the modality; images add the Hugging Face processor that prepares them;
* ``decode(medium, spec)``: a medium in the form that ``prepare`` takes; SignalError if that is impossible.
"""
