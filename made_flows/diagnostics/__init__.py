"""Checks of what a network, a density or a posterior claims to be."""
