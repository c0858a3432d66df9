"""Samples from the user's own program: what its sessions of onnxruntime were fed, kept by model.

    program --hook--> runs --store--> FEEDS/MODEL/*.npz, FEEDS/MODEL/index.json --catalogue--> samples, states

`hook`, `store`, `links` and `identity` are loaded into a program that knows nothing of this package, of any Python from
3.8 on: they import numpy and the standard library alone, and no fault of theirs reaches the program.
"""
