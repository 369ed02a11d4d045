"""Masked networks: orders, degrees and masks; masked layers; the MADE made of them."""
