"""The numbers that the paper, its follow-up and its author's files report: test errors in percent."""

from __future__ import annotations

# Percent of test images, Table 1: {network: (epochs, {column: (32-bit, 1-bit)})}.
TABLE1: dict[str, tuple[int, dict[str, tuple[float, float]]]] = {
    "20-4": (126, {
        "c10": (5.02, 6.13), "c100": (21.53, 23.87), "c10++": (4.39, 5.34), "c100++": (20.48, 23.74)}),
    "20-10": (254, {
        "c10": (4.22, 4.72), "c100": (18.76, 19.35), "c10++": (3.46, 3.92), "c100++": (17.19, 18.51)}),
    "26-10": (254, {
        "c10": (4.23, 4.46), "c100": (18.63, 18.94), "c10++": (3.54, 3.41), "c100++": (17.22, 18.50)}),
    "20-20": (126, {"c100": (18.14, 18.81)}),
}  # fmt: skip
# Top-1 and top-5, or top-1 alone: (data, weights, network, epochs, errors).
TABLE2: tuple[tuple[str, str, str, int, tuple[float, ...]], ...] = (
    ("svhn", "32bit", "20-4", 30, (1.75,)),
    ("svhn", "1bit", "20-4", 30, (1.93,)),
    ("imagenet32", "32bit", "20-4", 30, (46.61, 22.91)),
    ("imagenet32", "32bit", "20-10", 30, (39.96, 17.89)),
    ("imagenet32", "32bit", "20-15", 30, (38.90, 17.03)),
    ("imagenet32", "1bit", "20-4", 30, (56.08, 30.88)),
    ("imagenet32", "1bit", "20-10", 30, (44.27, 21.09)),
    ("imagenet32", "1bit", "26-10", 62, (41.36, 18.93)),
    ("imagenet32", "1bit", "20-15", 30, (41.26, 19.08)),
    ("imagenet", "32bit", "18-2.5", 62, (26.92, 9.20, 22.99, 6.91)),
    ("imagenet", "1bit", "18-2.5", 62, (31.03, 11.51, 26.04, 8.48)),
)
MNIST = {"32bit": {1: 0.71, 6: 0.28}, "1bit": {1: 0.81, 6: 0.36, 14: 0.27}}
# 100 minus the accuracies of the released Keras networks, 20-10 with cutout: (batch norm, shifted ReLU).
KERAS = {
    "c10": {"32bit": (3.38, 4.34), "1bit": (3.75, 3.48)},
    "c100": {"32bit": (16.98, 20.63), "1bit": (18.17, 21.59)},
}
CYCLE_ENDS = (2, 6, 14, 30, 62, 126, 254)
# Fig. 5 in numbers: 100 minus the accuracies stored in the released MATLAB files.
RELEASED_CURVES = {
    "c10-1bit-20-10-cutout": (26.60, 13.55, 8.46, 5.56, 4.64, 4.32, 3.82),
    "c100-1bit-20-10-cutout": (68.35, 46.32, 30.68, 23.35, 20.18, 18.88, 17.91),
}
ERRORS = ("error", "top5", "error_25_crops", "top5_25_crops")
