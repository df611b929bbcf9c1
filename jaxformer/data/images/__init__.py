"""Pictures with classes, from files to batches: sources, decoding, the store, augmentation."""
