"""How well found masks agree with true ones: overlaps, and who is whose partner."""

import numpy as np
from scipy.optimize import linear_sum_assignment


def intersection_over_union(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(P, H, W) and (T, H, W) bool -> IoU (P, T); two empty masks count 1."""
    pixels = truth.shape[1] * truth.shape[2]
    p, t = (masks.reshape(len(masks), pixels).astype(np.float32) for masks in (predicted, truth))
    shared = p @ t.T
    union = p.sum(1)[:, None] + t.sum(1)[None] - shared
    return np.where(union > 0, shared / np.maximum(union, 1), 1.0)


def match_entities(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """IoU (T,) of each true mask with the prediction that the best one-to-one matching gives it, 0 without one."""
    return best_matching(intersection_over_union(predicted, truth))


def best_matching(overlap: np.ndarray) -> np.ndarray:
    """IoU (P, T) -> (T,): what the one-to-one matching of the largest sum gives each column, 0 without a partner."""
    matched = np.zeros(overlap.shape[1])
    rows, columns = linear_sum_assignment(-overlap)
    matched[columns] = overlap[rows, columns]
    return matched
