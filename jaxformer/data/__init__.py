"""Text to batches: sources, tokenizers, the token store, packing and the loader."""
