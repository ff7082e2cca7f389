"""Breaks of one label space: proposals, verdicts, sets as targets."""

from tests.mutants.broken import Break

SPACE = "tests/xfer/test_label_space.py"
VERDICTS = ("tests/shards/test_labels.py",)
ALIKE = ("tests/xfer/transfer/test_alike.py",)
LOSS = ("tests/xfer/test_labels.py",)
RIGHT = (f"{SPACE}::test_an_answer_inside_the_set_is_right_wherever_it_is_counted",)

BREAKS = (
    Break(
        "undecided-joined",
        "a pair that nobody decided is joined",
        "shards/labels.py",
        '        for pair in pairs:\n            if pair.verdict == "same":\n                self._join',
        '        for pair in pairs:\n            if pair.verdict in ("same", "undecided"):\n                self._join',
        VERDICTS,
    ),
    Break(
        "different-ignored",
        "equal names are joined though they are said to be different",
        "shards/labels.py",
        'pair.verdict in ("different", "part_of")}',
        'pair.verdict == "part_of"}',
        VERDICTS,
    ),
    Break(
        "one-part",
        "a class of one part only is taught as that part",
        "shards/labels.py",
        "if len(direct[whole]) < 2:",
        "if len(direct[whole]) < 1:",
        VERDICTS,
    ),
    Break(
        "labels-not-applied",
        "data.labels changes no name",
        "shards/loading/subset.py",
        "return self.manifest.classes if self.names is None else self.names",
        "return self.manifest.classes",
        (SPACE,),
    ),
    Break(
        "whole-stays-a-class",
        "a class whose parts are trained is a class beside them",
        "shards/loading/open.py",
        "for part in parts.get(name, ())) < 2)",
        "for part in parts.get(name, ())) < 99)",
        (SPACE,),
    ),
    Break(
        "set-outside-mask",
        "the parts of a class are not among those that its source annotates",
        "xfer/labels.py",
        "row |= sets[numbers].any(0)",
        "row[numbers[numbers < num_classes]] = True",
        (SPACE,),
    ),
    Break(
        "set-by-its-best",
        "the probability of a set is that of its likeliest class",
        "xfer/labels.py",
        "loss = -log_p.masked_fill(~targets, -torch.inf).logsumexp(1)",
        "loss = -log_p.masked_fill(~targets, -torch.inf).amax(1)",
        LOSS,
    ),
    Break(
        "set-scored-as-one",
        "an answer inside a set is a mistake in comparisons",
        "xfer/outcomes.py",
        "is_right(model(batch.images).argmax(1), as_sets(batch.targets.clamp_min(0), sets))",
        "is_right(model(batch.images).argmax(1), batch.targets)",
        RIGHT,
    ),
    Break(
        "set-mistaken",
        "an answer inside a set is listed as a mistake",
        "xfer/mistakes.py",
        "        if self._sets is not None:",
        "        if False:",
        RIGHT,
    ),
    Break(
        "loud-class",
        "a class that a head calls everything is the same as everything",
        "xfer/transfer/alike.py",
        "answers = (logits - means.mean(0)).argmax(1)",
        "answers = logits.argmax(1)",
        ALIKE,
    ),
    Break(
        "one-way-is-same",
        "classes are the same by what one head says",
        "xfer/transfer/alike.py",
        "if there.clear(x, y) and back.clear(y, x):",
        "if there.clear(x, y):",
        ALIKE,
    ),
    Break(
        "verdicts-lost",
        "a person's verdicts are proposals again",
        "xfer/transfer/propose.py",
        "accepted = [_decided(pair, found) for pair in said.values()]",
        "accepted = []",
        (*ALIKE, f"{SPACE}::test_verdicts_that_stand_in_the_file_are_kept"),
    ),
    Break(
        "test-images-looked-at",
        "images of test sources have a say in the label space",
        "xfer/cli/labels.py",
        "samples = samples_of(model, data.train, data.classes,",
        "samples = samples_of(model, [*data.train, *data.test], data.classes,",
        (f"{SPACE}::test_pairs_are_proposed_and_none_is_decided",),
    ),
    Break(
        "other-verdicts-go-on",
        "a run goes on under other verdicts",
        "xfer/prepare.py",
        "faults += _other_verdicts(before.data.labels, recipe.data.labels)",
        "",
        (f"{SPACE}::test_other_verdicts_are_another_run",),
    ),
    Break(
        "ranked-by-other-names",
        "a renamed source is ranked otherwise, so features that are kept are of other images",
        "xfer/transfer/features.py",
        "subset.numbered(subset.class_names)",
        "subset.numbered(subset.manifest.classes)",
        (f"{SPACE}::test_the_first_images_of_a_source_are_the_same_whatever_its_classes_are_called",),
    ),
)
