"""The pictures of the lessons: a file a lesson, named like its notebook, drawing that lesson's data."""
