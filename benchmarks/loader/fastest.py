"""The far limit of decoding: libjpeg-turbo by its fastest binding, and OpenCV's bilinear resize without antialiasing.

Its crops are simpler and its pixels not ours: it is a mark to measure the distance to, not a decoder to train with.
"""

import random

import cv2
import numpy as np
import simplejpeg
import torch

from benchmarks.loader.contest import SIZE

cv2.setNumThreads(1)
_JPEG = b"\xff\xd8\xff"


def fastest(data: bytes) -> torch.Tensor:
    """uint8 [3, 224, 224] of encoded bytes."""
    if data.startswith(_JPEG):
        image = simplejpeg.decode_jpeg(data, fastdct=True, fastupsample=True)
    else:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    height, width = image.shape[:2]
    side_y, side_x = (max(1, int(side * random.uniform(0.3, 1.0))) for side in (height, width))
    top, left = random.randint(0, height - side_y), random.randint(0, width - side_x)
    square = cv2.resize(image[top : top + side_y, left : left + side_x], (SIZE, SIZE))
    if random.random() < 0.5:
        square = cv2.flip(square, 1)
    return torch.from_numpy(square).permute(2, 0, 1)
