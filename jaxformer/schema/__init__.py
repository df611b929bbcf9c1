"""Configurations as data: their classes, overrides, YAML, and the words for their mistakes."""
