"""codes → merges: training the image BPE.

`naive` is the law in plain Python, `trainer.train_merges` the fast way to the same rules.
"""
