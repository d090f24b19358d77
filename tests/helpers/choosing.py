"""Choices of a model's file with clocks, caches and measurements of a test's own."""

from cv_pipeline.inference.choice import Choice, Measuring
from cv_pipeline.inference.loading import explain_choice, load_model


def choose(path, wanted="auto", providers=None, threads=0, **how) -> Choice:
    return explain_choice(
        path, wanted, None, providers, threads, Measuring(threads, tuple(providers or ()), **how)
    )


def open_chosen(path, wanted="auto", threads=0, **how):
    return load_model(path, threads=threads, backend=wanted, how=Measuring(threads, (), **how))
