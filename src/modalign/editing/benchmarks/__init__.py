"""What an edit did: the published scores, free generation and the drift of everything else."""
