"""Loading an encoder for each modality: pretrained weights, or a description read from the data.

A modality's file offers

* ``load(name, media, options, allow_pickle) -> (spec, encoder)``: the encoder called ``name``, described for
  some training media of the modality; images add the Hugging Face processor that prepares them;
* ``decode(medium, spec)``: a medium as the encoder's ``prepare`` takes it; a SignalError where it does not.
"""
