"""Tests of the methods: golden decoders of published programs, and tiny whole models, for all of them."""
