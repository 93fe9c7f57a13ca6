"""The commands of `erlab`, in modules by what they are about; `erlab.commands.app` puts them together.

Each parses its options and calls one function of the package. What is slow to import is imported where it is used, so
that help comes at once.
"""
