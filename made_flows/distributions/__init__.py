"""What models give when they are called: torch distributions, conditionals and mixtures."""
