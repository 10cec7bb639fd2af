"""A student as an ONNX file, and a classifier that needs only onnxruntime and NumPy."""

import numpy as np
import onnxruntime

import kd3

pool = kd3.ingest("crawl/", "pool", image_size=32)
kd3.distill("teacher.yaml", "kd3:resnet8", pool, "runs/ship", images="1k", method="kd")
kd3.export("runs/ship", "shipped", check_images=50)
session = onnxruntime.InferenceSession("shipped/student.onnx")
images = np.zeros((2, 3, 32, 32), dtype=np.uint8)  # RGB
print(session.run(None, {session.get_inputs()[0].name: images})[0].argmax(axis=1))
