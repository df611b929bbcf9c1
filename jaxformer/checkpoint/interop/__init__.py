"""Weights of others into a run, and a run into a folder that others load."""
