"""Evaluation of a pre-trained encoder: retrieval of translations, and how much language identity its vectors show."""
