"""The compiled parts of the sequential inverse (LLVM, by llvmlite)."""
