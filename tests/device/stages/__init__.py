"""The stages in order of worth: what must be there, what is right, what is fast, what could be."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """`module` has a function of the stage's name, which takes a report and the seconds it may take."""

    module: str
    limit: float  # seconds
    dry: bool = True  # runs on a CPU too


STAGES = {
    "env": Stage("prepare", 40),
    "build": Stage("prepare", 100),
    "checkpoint": Stage("prepare", 60),
    "truth": Stage("correct", 60),
    "torch_bfloat16": Stage("speed", 60),
    "torch_compiled": Stage("compiled", 150),
    "compile_kernels": Stage("compiled", 150),
    "eager": Stage("speed", 60),
    "compile": Stage("compiled", 150),
    "kernels": Stage("operators", 60, dry=False),
    "tests": Stage("correct", 100, dry=False),
    "torch_float16": Stage("speed", 60, dry=False),
    "torch_float32": Stage("speed", 60),
    "correct": Stage("correct", 60),
    "sanitizer": Stage("correct", 120, dry=False),
    "touch": Stage("correct", 60),
    "ideas": Stage("ideas", 60, dry=False),
    "torch_tf32": Stage("speed", 60, dry=False),
    "torch_packed": Stage("speed", 40, dry=False),
}
