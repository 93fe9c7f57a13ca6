"""Commands of `erlab`, one module per subject; `erlab.commands.app` assembles them.

Each command parses its options and calls one function of the package. Modules that are slow to import are imported
inside the commands, so that ``--help`` starts fast.
"""
