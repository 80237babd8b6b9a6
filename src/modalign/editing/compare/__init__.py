"""Compare editing methods on the same edits: in growing numbers, in batch and sequentially."""
