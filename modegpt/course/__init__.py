"""What is taught: the notebooks, the checks under their exercises, their pictures, and grading."""
