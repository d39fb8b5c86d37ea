"""How good a model is: loss on texts, answers to rows, tasks; and whether one is better."""
