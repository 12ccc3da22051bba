"""The stages in order of worth: what must be there, what is right, what is fast, what could be."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """`module` has a function of the stage's name, which takes a report and the seconds it may take."""

    module: str
    limit: float  # seconds
    timed: bool = False  # wants the machine for itself; the others run at once
    dry: bool = True  # runs on a CPU too
    beside: bool = False  # compiles beside the others, and measures when its turn has come


STAGES = {
    "env": Stage("prepare", 40),
    "build": Stage("prepare", 100),
    "checkpoint": Stage("prepare", 60),
    "truth": Stage("correct", 150),
    "touch": Stage("correct", 150),
    "tests": Stage("correct", 150, dry=False),
    "correct": Stage("correct", 150),
    "torch_compiled": Stage("compiled", 240, beside=True),
    "compile": Stage("compiled", 240, beside=True),
    "torch_bfloat16": Stage("speed", 60, timed=True),
    "eager": Stage("speed", 60, timed=True),
    "compile_attention": Stage("compiled", 240, beside=True),
    "compile_kernels": Stage("compiled", 240, beside=True),
    "kernels": Stage("operators", 60, timed=True, dry=False),
    "ideas": Stage("ideas", 60, timed=True, dry=False),
    "torch_float16": Stage("speed", 60, timed=True, dry=False),
    "sanitizer": Stage("correct", 120, timed=True, dry=False),
    "torch_float32": Stage("speed", 60, timed=True),
    "torch_tf32": Stage("speed", 60, timed=True, dry=False),
    "torch_packed": Stage("speed", 40, timed=True, dry=False),
}
