"""The compiled parts of the sequential inverse (LLVM, by llvmlite).

``backend`` is the entry. ``placement`` says where a network's numbers stand in the arrays of the
kernels, and ``packing`` puts them there. The kernels are functions of plain Python: ``solve`` is
the sweep and ``adjoint`` its way back, ``parallel`` and ``training`` are the parallel pass; all are
made of ``products``, ``units`` and ``steps``. ``translation`` and ``simd`` write them as LLVM code.
"""
