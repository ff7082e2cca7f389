"""A model leaves the project: as an ONNX file in float or in int8.

The order of work is `graph` -> (`observe` -> `qdq`) -> `check` -> `write`. Storage bits become compute bits here: codes
of 2 to 8 bits are int8 in the graph, with the scales of the bundle. What a runtime answers is compared with the model
before a file is there.
"""
