"""python examples/new_notebook.py 16_my_question: a notebook that keeps the rules of the form."""

import sys
from pathlib import Path

from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from modegpt.course import files

stem = sys.argv[1]
card = f"""# {stem[:2]} My question

- **You will be able to** say what the ridge does to leverage scores.
- **You need** [03](03_nystrom.ipynb).
- **Time** about 10 s of computing on two CPU cores; no GPU needed; 5 minutes to read.
- **The claim** the sum of the scores falls as the ridge grows. **Its control** a ridge of nearly nothing counts all."""
imports = """import matplotlib.pyplot as plt
import torch
from modegpt.decompose import leverage_scores
from modegpt.style import show"""
model = """torch.manual_seed(0)
a = torch.randn(1000, channels, dtype=torch.float64)
ridges = [10.0**k for k in range(-8, 3)]
sums = [leverage_scores(a.T @ a / len(a), ridge).sum().item() for ridge in ridges]
assert sums == sorted(sums, reverse=True) and abs(sums[0] - channels) < 1e-3"""
picture = """figure, axes = plt.subplots()
axes.semilogx(ridges, sums)
axes.set(xlabel="ridge (means of the diagonal)", ylabel="sum of leverage scores (channels)")
show(figure, alt="Leverage scores add up to all channels, then to none, as the ridge grows.")"""
cells = [
    new_markdown_cell(card, id="card"),
    new_code_cell("channels = 20  # of the MLP", id="parameters", metadata={"tags": ["parameters"]}),
    new_code_cell(imports, id="imports"),  # after a restart they are all that an exercise needs
    new_code_cell(model, id="claim"),
    new_code_cell(picture, id="picture", metadata={"tags": ["signature"]}),
    new_code_cell("print(f'{sums[0]:.2f}')", id="control", metadata={"tags": ["nbval-check-output"]}),
]
files.write(files.scrub(new_notebook(cells=cells)), Path("notebooks", f"{stem}.ipynb"))
