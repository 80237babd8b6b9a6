"""The editing methods side by side: the same edits, more and more of them, batch and sequential."""
