"""Fuzzing of all that parses bytes from a disk or a wire: atheris (libFuzzer) with coverage of Python and of the extensions.

    make fuzz SECONDS=600 TARGET=pool-log        fuzz one target, or without TARGET each in turn
    python -m tests.fuzz pool-log --input FILE    run one input again

A target is given bytes and raises for anything but a documented error.  Its corpus in the tree is tests/fuzz/corpus/TARGET.
"""
