"""Pools of kernels that are ready before they are asked for."""
