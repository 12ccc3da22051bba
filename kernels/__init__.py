"""The operators worth a kernel: one folder each, with a plain reference beside every fast version.

Native CPU kernels live in one shared library, built by CMake from `csrc/` and bound by ctypes, so
that importing them needs numpy and nothing else.
"""
