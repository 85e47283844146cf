"""How the demo model is made: architecture, corpus, vocabulary, training, export.

Needs PyTorch and gguf, which the package itself does not. Run the modules from the root of the
repository: ``python -m scripts.demo_model.train --help``. docs/demo_model.md tells the whole story.
"""
