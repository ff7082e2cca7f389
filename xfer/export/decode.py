"""What the outputs of a detector or a segmenter that xfer exported mean. Needs NumPy alone, and lies beside the file.

    import json, numpy, onnxruntime
    from PIL import Image
    from decode import detections, pixels, to_original

    session = onnxruntime.InferenceSession("model.onnx")
    about = session.get_modelmeta().custom_metadata_map      # classes, image_size, resize, ...
    names = [one.name for one in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, {"images": images})))  # images: uint8 [B, 3, S, S], RGB
    found = detections(outputs, S)[0]                        # of a detector, in pixels of the square
    boxes, scores, labels = to_original(*found, width, height, S, about["resize"])  # in those of the image
    mask = pixels(outputs["logits"][0], S, width, height, about["resize"])  # of a segmenter: uint8 [height, width]

An image lies in the square as about["resize"] says. letterbox: its longer side is made S pixels, it lies at the top
left, and the rest is (124, 116, 104); stretch: it is made S x S; centre: so is the largest square in its middle. It is
resized bilinearly with antialiasing, as PIL's Image.BILINEAR is.
"""

import numpy as np


def frame(width, height, size, resize):
    """Where an image lies in the square: left, top, width and height of what is seen, rows and columns it fills."""
    if resize == "centre":
        side = min(width, height)
        return (width - side) // 2, (height - side) // 2, side, side, size, size
    if resize == "stretch":
        return 0, 0, width, height, size, size
    longer = max(width, height)
    rows, columns = (max(1, round(side * size / longer)) for side in (height, width))
    return 0, 0, width, height, rows, columns


def detections(outputs, size, score=0.05, candidates=1000, most=100):
    """Of each image boxes [n, 4] x0, y0, x1, y1 in pixels of the square, scores [n], labels [n], best first.

    outputs: float32 by name, of a batch: classes [B, N, K] and boxes [B, N, 4]; points [N, 3] and centerness [B, N, 1]
    of an FCOS; anchors [N, 4] and level [N] of a RetinaNet. Of each level the `candidates` best above `score`; of
    these, class by class, what does not overlap a better one too much; of these the `most` best.
    """
    scores = _sigmoid(outputs["classes"])
    if "points" in outputs:
        places, overlap, level = outputs["points"], 0.6, outputs["points"][:, 2]
        boxes = _from_points(outputs["boxes"], places)
        scores = np.sqrt(scores * _sigmoid(outputs["centerness"]))
    else:
        boxes, overlap, level = _from_anchors(outputs["boxes"], outputs["anchors"]), 0.5, outputs["level"]
    boxes = boxes.clip(0, size)
    scores = np.where(np.isnan(boxes).any(-1, keepdims=True), 0, scores)
    starts = [0, *(np.flatnonzero(np.diff(level)) + 1), len(level)]
    return [_best(*one, starts, score, overlap, candidates, most) for one in zip(boxes, scores)]  # noqa: B905


def _best(boxes, scores, starts, score, overlap, candidates, most):
    num_classes, parts = scores.shape[1], []
    for start, end in zip(starts[:-1], starts[1:]):  # noqa: B905, RUF007
        flat = scores[start:end].ravel()
        chosen = np.flatnonzero(flat > score)
        chosen = chosen[np.argsort(-flat[chosen], kind="stable")[:candidates]]
        parts.append((boxes[start + chosen // num_classes], flat[chosen], chosen % num_classes))
    boxes, scores, labels = (np.concatenate(part) for part in zip(*parts))  # noqa: B905
    kept = []
    for label in np.unique(labels):
        left = np.flatnonzero(labels == label)
        left = left[np.argsort(-scores[left], kind="stable")]
        while len(left):
            kept.append(left[0])
            left = left[1:][_overlaps(boxes[left[0]], boxes[left[1:]]) <= overlap]
    kept = np.array(kept, np.int64)
    kept = kept[np.argsort(-scores[kept], kind="stable")][:most]
    return boxes[kept], scores[kept], labels[kept]


def _overlaps(one, others):
    """Intersection over union of a box [4] and others [n, 4]."""
    sides = np.minimum(one[2:], others[:, 2:]) - np.maximum(one[:2], others[:, :2])
    common = sides.clip(0).prod(1)
    areas = (others[:, 2:] - others[:, :2]).prod(1) + (one[2:] - one[:2]).prod()
    return common / np.maximum(areas - common, 1e-9)


def _from_points(distances, points):
    away = distances * points[:, 2:]
    return np.concatenate([points[:, :2] - away[..., :2], points[:, :2] + away[..., 2:]], -1)


def _from_anchors(differences, anchors):
    sides, middle = anchors[:, 2:] - anchors[:, :2], (anchors[:, 2:] + anchors[:, :2]) / 2
    middle = middle + differences[..., :2] * sides
    half = np.exp(np.minimum(differences[..., 2:], np.log(1000 / 16))) * sides / 2
    return np.concatenate([middle - half, middle + half], -1)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x.clip(-80, 80)))


def to_original(boxes, scores, labels, width, height, size, resize):
    """Detections in pixels of the square -> in pixels of the image, cut at its edges; without those that lie in the
    padding alone.
    """
    left, top, seen_width, seen_height, rows, columns = frame(width, height, size, resize)
    scale = np.array([columns / seen_width, rows / seen_height] * 2)
    boxes = (boxes / scale + [left, top] * 2).clip(0, [width, height] * 2)
    there = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return boxes[there], scores[there], labels[there]


def pixels(logits, size, width, height, resize):
    """Logits [K, h, w] of a segmenter on a square -> the class of each pixel of the image, uint8 [height, width]."""
    *_, rows, columns = frame(width, height, size, resize)
    square = _resized(_resized(logits, size, 1), size, 2)[:, :rows, :columns]
    square = _resized(square, width, 2)
    labels = np.empty((height, width), np.uint8)
    for start in range(0, height, 64):  # K numbers for each pixel of a large photo are gigabytes
        part = slice(start, min(start + 64, height))
        labels[part] = _resized(square, height, 1, part).argmax(0)
    return labels


def _resized(x, length, axis, part=slice(None)):
    """Bilinearly along one axis, the centres of pixels half a pixel from the edge; `part`: which of the `length`."""
    own = x.shape[axis]
    places = ((np.arange(length)[part] + 0.5) * own / length - 0.5).clip(0)
    first = np.minimum(places.astype(np.int64), own - 1)
    share = (places - first).astype(x.dtype).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    return x.take(first, axis) * (1 - share) + x.take(np.minimum(first + 1, own - 1), axis) * share
