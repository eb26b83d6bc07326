"""The tables: one row a clip. An index lies beside every shard; a selection is what `curate` makes of all of them.

Scores are columns of their own, named `score.NAME`, float32, null where a clip has none, so that new scores can be added and
thresholds tried without reading anything else.
"""

import pyarrow as pa

FORMAT = 1
"""Version of shards and tables. A reader refuses a newer one in one sentence."""

SCORE = "score."

PARTS = pa.list_(
    pa.struct(
        [
            ("name", pa.string()),  # the member's suffix: "depth.wrz"
            ("offset", pa.int64()),  # of its first byte in the tar
            ("size", pa.int64()),
        ]
    )
)

INDEX = pa.schema(
    [
        ("clip_id", pa.string()),
        ("status", pa.string()),  # annotated, screened or failed: only annotated clips have parts
        ("reason", pa.string()),  # why it was screened out or failed; empty otherwise
        ("source", pa.string()),  # uri of the video or scene
        ("dataset", pa.string()),  # "video", or the data set's kind
        ("first_frame", pa.int64()),  # in the source
        ("last_frame", pa.int64()),
        ("num_frames", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("fps", pa.float32()),
        ("caption", pa.string()),
        ("licence", pa.string()),  # of the pixels
        ("annotators", pa.map_(pa.string(), pa.string())),  # slot -> what filled it
        ("annotator_licences", pa.list_(pa.string())),
        ("degenerate", pa.string()),  # the cameras' flags; null if none
        ("metric", pa.bool_()),
        ("phash", pa.int64()),  # perceptual hash of a picture near the middle; null where there is none
        ("work_key", pa.string()),  # hash of clip, recipe and models: changes if the labels would
        ("format", pa.int32()),
        ("shard", pa.string()),  # file name of the tar beside this index
        ("parts", PARTS),
    ]
)
"""Columns every index has; `score.*` columns follow."""

SELECTION = pa.schema(
    [
        ("clip_id", pa.string()),
        ("source", pa.string()),
        ("dataset", pa.string()),
        ("keep", pa.bool_()),
        ("weight", pa.float32()),  # how often, relative to the other clips of its data set; 0 where not kept
        ("outcome", pa.string()),  # pass, flag or fail: the worst verdict
        ("reasons", pa.list_(pa.string())),
        ("split", pa.string()),  # train, validation or test: a hash of the source decides
        ("num_frames", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("fps", pa.float32()),
        ("caption", pa.string()),
        ("work_key", pa.string()),
        ("shard", pa.string()),  # path of the tar, relative to the run's folder: "shards/x.tar"; or a whole uri
        ("parts", PARTS),
    ]
)
"""What the trainer needs to read any kept clip by byte ranges, without opening an index."""
