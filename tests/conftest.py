"""Triton kernels run under its interpreter, on the CPU, unless TRITON_INTERPRET=0 asks for a CUDA device."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the kernels are imported
