"""The breaks, by what they break: a key that is ignored, a step left out, a sign turned.

The text to replace stands exactly once in its file, so a break that the code has outgrown is an error and not a pass.
"""

from tests.mutants.breaks import clusters, data, labels, model, quantization, side, tasks, training, transfer, verbs

BREAKS = (
    *clusters.BREAKS,
    *data.BREAKS,
    *labels.BREAKS,
    *model.BREAKS,
    *quantization.BREAKS,
    *side.BREAKS,
    *tasks.BREAKS,
    *training.BREAKS,
    *transfer.BREAKS,
    *verbs.BREAKS,
)
