"""Measurements, not tests: each prints JSON and asserts nothing about speed."""
