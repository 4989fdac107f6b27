"""Implementations of the operators: one module a backend, one function an operator, the same names in each."""
