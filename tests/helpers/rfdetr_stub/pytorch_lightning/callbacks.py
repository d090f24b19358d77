"""Kinds of callbacks: those of the second kind are called after the others."""


class Callback:
    pass


class Checkpoint(Callback):
    pass
