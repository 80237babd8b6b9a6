"""lm-evaluation-harness and lmms-eval against ``modalign serve``: do they score as ``modalign eval`` does?"""
