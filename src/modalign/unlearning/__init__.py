"""Make a model forget: records to forget and to retain become a removable patch, or a final folder."""
