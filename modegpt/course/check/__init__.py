"""The checks under the exercises: `from modegpt.course.check import nystrom`, one module for each notebook.

A check takes the reader's function, tries it on small random problems, and raises `NotYet` with the likeliest mistake.
"""

from modegpt.course.check.verdict import NotYet, expect, passed

__all__ = ["NotYet", "expect", "passed"]
