"""A submodule becomes an attribute of its package when it is imported, so it may not be named like a function there."""

from __future__ import annotations

import pkgutil

import streamserve_kernels


def test_no_module_takes_the_place_of_a_kernel() -> None:
    modules = {module.name for module in pkgutil.iter_modules(streamserve_kernels.__path__)}
    assert modules.isdisjoint(streamserve_kernels.__all__)
