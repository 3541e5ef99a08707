"""The one part of the package that is compiled; everything else is said in pyproject.toml."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "indexer._exact",
            ["indexer/_exact.cpp"],
            depends=["indexer/_exact_loops.h"],
            # Products are rounded before they are added, whatever the processor could do at once:
            # a score has the same bits everywhere.
            extra_compile_args=["-std=c++17", "-O3", "-ffp-contract=off"],
            py_limited_api=True,
            # Who only calls a server needs no compiler; whatever searches says what is missing.
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
