"""The products that kernels.py compares, one file a library, all behind `product.Product`."""
