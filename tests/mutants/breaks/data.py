"""Breaks of order, loading and mixing."""

from tests.mutants.broken import Break

MIX = ("tests/shards/loading/test_mix.py",)
BALANCE = ("tests/shards/loading/test_balance.py",)

OUTLINES = ("tests/shards/sources/test_outlines.py",)

BREAKS = (
    Break(
        "train-size-ignored",
        "data.train_size changes nothing",
        "shards/loading/train.py",
        "size = config.train_size or config.image_size",
        "size = config.image_size",
        ("tests/shards/loading/test_train_size.py",),
    ),
    Break(
        "larger-object-on-top",
        "what lies on a larger object is hidden by it in a mask made of outlines",
        "shards/sources/outlines.py",
        "whole.append((-int(covered.sum()), number",
        "whole.append((int(covered.sum()), number",
        OUTLINES,
    ),
    Break(
        "crowds-are-pixels",
        "crowds are painted as objects of their class, in place of void",
        "shards/sources/outlines.py",
        "if one.crowd or not one.outline:",
        "if not one.outline:",
        OUTLINES,
    ),
    Break(
        "run-lengths-not-turned",
        "run lengths stay as they were where an EXIF tag turns their image",
        "shards/sources/coco.py",
        "runs(drawn.mask(pixels(one.outline, *drawn.drawn_on)))",
        "runs(pixels(one.outline, *drawn.drawn_on))",
        OUTLINES,
    ),
    Break(
        "mixed-by-share",
        "the last sample of a rank is mixed with its first",
        "shards/order/order.py",
        "rank_share(located.lane[first : first + batch_size], rank, world_size, ahead)",
        "np.resize(rank_share(located.lane[first : first + batch_size], rank, world_size), "
        "(batch_size * (rank + 1) // world_size) - batch_size * rank // world_size + ahead)",
        MIX,
    ),
    Break(
        "cut-share-as-drawn",
        "CutMix counts the area that was drawn, not the one inside the image",
        "shards/loading/mix.py",
        "share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / size**2",
        "pass",
        MIX,
    ),
    Break(
        "share-not-by-lane",
        "ranks take any samples, not neighbouring lanes",
        "shards/order/order.py",
        'np.argsort(lane, kind="stable")',
        "np.arange(len(lane))",
        ("tests/shards/order/test_order.py",),
    ),
    Break(
        "epoch-not-in-key",
        "every epoch has the same order",
        "shards/order/order.py",
        "fold(self._keys[source], epoch, lane, j)",
        "fold(self._keys[source], 0 * epoch, lane, j)",
        ("tests/shards/order/test_order.py",),
    ),
    Break(
        "balance-ignored",
        "data.balance changes nothing",
        "shards/loading/balance.py",
        "    if not balance:\n",
        "    if True:\n",
        BALANCE,
    ),
    Break(
        "class-rows-of-another",
        "the rows of a class are taken for rows of its source",
        "shards/order/order.py",
        "rows[of[same]] = within.by_class(int(shard[of[same[0]]]))[inside[same]]",
        "pass",
        BALANCE,
    ),
    Break(
        "balance-not-in-plan",
        "a run goes on with other weights of classes and does not say so",
        "shards/loading/state.py",
        '**({"balance": config.balance} if config.balance else {}),',
        "",
        BALANCE,
    ),
    Break(
        "counters-shuffled",
        "a source begins its next epoch before this one is over",
        "shards/order/blend.py",
        "        return sources, in_order\n",
        "        return sources, counts\n",
        ("tests/shards/order/test_order.py",),
    ),
    Break(
        "crc-unchecked",
        "a flipped bit reaches the model",
        "shards/loading/reader.py",
        "if zlib.crc32(span) != crc32:",
        "if False:",
        ("tests/shards/loading/test_damage.py",),
    ),
    Break(
        "validation-trained-on",
        "the held-out part is trained on too",
        "shards/loading/open.py",
        "for s in ((share, 1), (0, share))",
        "for s in ((0, 1), (0, share))",
        ("tests/shards/loading/test_validation.py",),
    ),
    Break(
        "held-source-trained-on",
        "a source held out whole is trained on too",
        "shards/loading/open.py",
        "            validation.append(subset)\n            continue\n",
        "            validation.append(subset)\n",
        ("tests/shards/loading/test_validation.py",),
    ),
    Break(
        "stored-order",
        "few samples come in stored order",
        "shards/loading/few.py",
        "mix_array(subset.key_hashes() ^ _SALT)",
        "np.arange(subset.num_samples)",
        ("tests/shards/loading/test_few.py",),
    ),
    Break(
        "strict-ignored",
        "data.strict changes nothing",
        "shards/loading/train.py",
        "{} if config.strict else ",
        "",
        ("tests/shards/loading/test_stream.py", "tests/shards/loading/test_damage.py"),
    ),
)
