"""Models: modules with weights that give a distribution when they are called with a context."""
