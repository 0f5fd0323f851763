"""Where the tests of device kernels run: on the CPU under Triton's interpreter, or on CUDA with TRITON_INTERPRET=0."""

import os

DEVICE = "cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda"
