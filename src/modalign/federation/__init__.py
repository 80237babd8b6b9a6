"""Many owners train one model without pooling their records."""
