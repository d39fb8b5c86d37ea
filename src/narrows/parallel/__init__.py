"""Apply a layout to a model: one file a kind, none of which the model knows of."""
