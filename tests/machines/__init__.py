"""What stands in for a GPU and its tools where there is none, and what builds the kernels for it."""
