"""What a draft of any kind is trained on: a target, the texts that it wrote, and the settings."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from emsjax.loading.load import LoadedModel
from emsjax.train.batches import Split
from emsjax.train.fit import Fitting
from emsjax.train.record import Text
from emsjax.train.whole_texts import WholeTexts, all_whole_batches, whole_batch_number


class Lesson(NamedTuple):
    """What a draft is trained on.

    Attributes:
      target: the model to draft for.
      token_ids: int32[Vd], the tokens that the draft can propose.
      prompts: token ids of each prompt.
      split: the texts.
      fitting: training settings.
    """

    target: LoadedModel
    token_ids: np.ndarray
    prompts: Sequence[Sequence[int]]
    split: Split
    fitting: Fitting

    def whole_batch(self, number: int) -> WholeTexts:
        """Returns the batch of an update, prompts included, see `Task.batch_number`."""
        learn, fitting = self.split.learn, self.fitting
        sizes = fitting.rows, fitting.width, fitting.seed
        return whole_batch_number(learn, self.prompts, number, *sizes)

    def whole_batches(self, texts: Sequence[Text]) -> Iterator[WholeTexts]:
        """Yields batches with every text once, prompts included."""
        return all_whole_batches(texts, self.prompts, self.fitting.rows, self.fitting.width)

    def held_out(self) -> Iterator[WholeTexts]:
        """Yields the batches to evaluate on, prompts included."""
        return self.whole_batches(self.split.held_out)
