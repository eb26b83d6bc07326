"""Pictures are for judging: near is red, unknown is gray, opposite motion has opposite hues."""

import numpy as np

from shared import pictures


def test_near_is_red_far_is_blue_unknown_is_gray():
    z = np.full((1, 4, 6), 2.0, np.float32)
    z[:, :, 3:] = 20.0
    valid = np.ones(z.shape, bool)
    valid[0, 0, 0] = False
    shown = pictures.depth(z, valid)
    assert (shown[0, 0, 0] == pictures.UNKNOWN).all()
    near, far = shown[0, 2, 0].astype(int), shown[0, 2, 5].astype(int)
    assert near[0] > near[2]
    assert far[2] > far[0]


def test_a_clip_without_depth_is_all_gray():
    shown = pictures.depth(np.zeros((2, 3, 4), np.float32), np.zeros((2, 3, 4), bool))
    assert (shown == pictures.UNKNOWN).all()


def test_still_flow_is_white_and_opposite_flows_differ():
    flow = np.zeros((1, 1, 3, 2), np.float32)
    flow[0, 0, 1], flow[0, 0, 2] = (5, 0), (-5, 0)
    shown = pictures.flow(flow, largest=5.0)[0, 0].astype(int)
    assert (shown[0] == 255).all()
    assert (shown[1] == (255, 0, 0)).all()  # to the right: red
    assert (shown[2] == (0, 255, 255)).all()


def test_marks_are_where_they_should_be():
    rgb = np.full((1, 2, 2, 3), 100, np.uint8)
    where = np.zeros((1, 2, 2), bool)
    where[0, 1, 1] = True
    shown = pictures.marked(rgb, where)
    assert (shown[0, 0, 0] == 100).all()
    assert shown[0, 1, 1, 0] > shown[0, 1, 1, 1]


def test_heat_saturates():
    value = np.array([[[0.0, 1.0, 9.0]]], np.float32)
    cold, hot, beyond = pictures.heat(value, 1.0)[0, 0].astype(int)
    assert (hot == beyond).all()
    assert (cold != hot).any()
