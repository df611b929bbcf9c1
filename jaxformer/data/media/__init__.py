"""What pictures and recordings have in common on the way from files to batches."""
