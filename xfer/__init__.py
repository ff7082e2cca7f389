"""A Recipe (data + model + training) in one process: fusion model, transfer, quantization, the shipped bundle."""
