"""``modalign app transform``: one instruction in, text or calls to generators out."""
