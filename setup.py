"""The compiled parts of the package; everything else is said in pyproject.toml."""

from setuptools import Extension, setup

LOOSE = {
    "extra_compile_args": ["-std=c++17", "-O3"],
    "py_limited_api": True,
    # Who only calls a server needs no compiler; whatever trains or searches says what is missing.
    "optional": True,
}
# Products are rounded before they are added, whatever the processor could do at once: a score has
# the same bits everywhere.
STRICT = {**LOOSE, "extra_compile_args": [*LOOSE["extra_compile_args"], "-ffp-contract=off"]}

setup(
    ext_modules=[
        Extension(
            "indexer._exact", ["indexer/_exact.cpp"], depends=["indexer/_exact_loops.h"], **STRICT
        ),
        Extension("trainer._vocabulary", ["trainer/_vocabulary.cpp"], **LOOSE),
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
