"""Recordings with texts or classes, from files to batches: decoding, the store, augmentation."""
