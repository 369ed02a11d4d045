"""Masked networks: orders, degrees and masks; masked layers; the MADE made of them.

``masks`` has functions of integers, of which ``connectivity`` makes all masks of a network;
``linear`` and ``masked_mlp`` are its layers and its pass, ``made`` is the class for users.
``reordering`` and ``per_row_orders`` put the same weights into other orders. ``spec`` is what the
sequential inverse sees of a network, ``validation`` whether that is all there is to see.
"""
