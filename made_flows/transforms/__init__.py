"""Invertible maps between data and noise, each with its log-determinant."""
