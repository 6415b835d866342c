"""frames ↔ frames with repeat codes, compiled: one pass over memory that also looks for codes out of range.

The loops over cells are plain comparisons and choices of equal types, so that they become vector instructions.
"""

from .._jit import kernel


@kernel
def mark(frames, repeat_code, key_frame_interval, num_before, marked):
    """Fill marked, (T, cells) as frames is; returns the least and the greatest code.

    repeat_code is of the dtype of marked. key_frame_interval is 0 where the first frame alone is a key frame;
    num_before frames precede the first.
    """
    least = greatest = frames[0, 0]
    for t in range(len(frames)):
        now, out = frames[t], marked[t]
        if t == 0 or (key_frame_interval and (t + num_before) % key_frame_interval == 0):
            for i in range(len(now)):
                out[i] = now[i]
        else:
            before = frames[t - 1]
            for i in range(len(now)):
                out[i] = repeat_code if now[i] == before[i] else now[i]
        for i in range(len(now)):
            least, greatest = min(least, now[i]), max(greatest, now[i])
    return least, greatest


@kernel
def restore(frames, repeat_code, restored):
    """Fill restored, (T, cells) as frames is, repeat_code being of its dtype; returns least and greatest code."""
    least = greatest = frames[0, 0]
    restored[0] = frames[0]
    for t in range(1, len(frames)):
        now, before, out = frames[t], restored[t - 1], restored[t]
        for i in range(len(now)):
            old = before[i]  # read in any case: a load under a condition is no vector instruction
            out[i] = old if now[i] == repeat_code else now[i]
        for i in range(len(now)):
            least, greatest = min(least, now[i]), max(greatest, now[i])
    return least, greatest
