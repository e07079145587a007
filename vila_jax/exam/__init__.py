"""How well a model answers about drawn scenes, with all visual tokens and with fewer: what `nano` is judged by.

items      one question about each of many held-out scenes, and scores
examiner   asks a model, in batches, with the pictures shown in one of several ways
results    rows and tables
chart      accuracy against tokens, as a PNG
"""
