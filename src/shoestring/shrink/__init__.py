"""Trained models made small: packed for the kernels of `lowbit`, or written as GGUF for llama.cpp."""
