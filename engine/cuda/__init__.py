"""The fast path on a GPU: Triton kernels, the fused decoder, CUDA graphs and the runner that uses them."""
