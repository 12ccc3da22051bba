"""The operators worth a kernel: one folder each, with a plain reference beside every fast version.

They serve the `torch` backend. The native CPU kernels are one shared library, which CMake builds from `csrc/`
if it finds a C++ compiler and ctypes loads.
"""
