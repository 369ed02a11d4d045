"""Tables: what their columns hold, and a MADE with a head for each column."""
