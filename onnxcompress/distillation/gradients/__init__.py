"""Derivative of a loss by the weights of a model, as an ONNX graph.

    reverse      the walk from the loss to the weights; the door to onnx-ad, whose rules cover most operators
    rule         what a rule of our own gets: shapes, constants, and the nodes that it adds
    convolution  Conv and ConvTranspose with groups, dilations and every kind of padding
    pooling      MaxPool and AveragePool
    indexing     Slice with steps, Pad that repeats values
    arithmetic   operators that broadcast, matrix products, Softmax
    normalization

A rule of our own replaces that of onnx-ad where this refuses (weights of grouped and transposed convolutions, automatic
padding, overhanging windows) or is slow: a trailing axis of one element makes onnxruntime's broadcasting run element by
element.
"""
