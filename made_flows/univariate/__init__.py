"""One dimension: what the parameters of a feature mean, as a distribution or a monotone map."""
