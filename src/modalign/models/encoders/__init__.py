"""Loading an encoder for each modality: pretrained weights, or a description read from the data."""
