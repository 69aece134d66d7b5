"""Compressed models on disk: the folder, its model card, and what other tools load."""
