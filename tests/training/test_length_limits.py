import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from rewardproof.data.encoding import EncodedGroup
from rewardproof.data.pairs import Pair
from rewardproof.errors import ConfigError, ModelError
from rewardproof.models.reward_model import RewardModel
from rewardproof.training.batches import TrainingGroup, TrainingSet
from rewardproof.training.fit import Compute, Fit, fit
from rewardproof.training.objective import Loss

LONG = EncodedGroup((tuple(range(4, 24)), tuple(range(4, 23))), 18, (18, 18), 0)


def _dynamic(tiny) -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    return LlamaForSequenceClassification(LlamaConfig(**{**tiny.COMMON, "max_position_embeddings": 16}, rope_parameters=rope))


def test_scoring_beyond_a_dynamic_boundary_is_refused(tiny):
    model = RewardModel(_dynamic(tiny), tiny.word_tokenizer())
    with pytest.raises(ModelError, match=r"conversation of 20 tokens, expected at most 16: .*Shorten the text"):
        model.score_encoded([LONG])
    short = EncodedGroup(((4, 5, 6),), 0, (1,), 0)
    assert len(model.score_encoded([short])[0]) == 1


def test_training_beyond_a_rotary_boundary_is_refused(tiny, tmp_path):
    groups = TrainingSet([TrainingGroup(LONG, (Pair(0, 1, None),))])
    run = Fit(
        model=_dynamic(tiny),
        train=groups,
        held_out=None,
        layers=range(3),
        folder=tmp_path,
        seed=0,
        trainer={},
        loss=Loss(),
        compute=Compute(),
    )
    with pytest.raises(ConfigError, match=r"conversation of 20 tokens, expected at most 16.*Set max_length=16"):
        fit(run)


def test_training_beyond_a_table_of_positions_is_refused(tiny, tmp_path):
    model = tiny.classifier("gpt2")
    model.config.n_positions = 16
    groups = TrainingSet([TrainingGroup(LONG, (Pair(0, 1, None),))])
    run = Fit(
        model=model, train=groups, held_out=None, layers=range(3), folder=tmp_path, seed=0, trainer={}, loss=Loss(), compute=Compute()
    )
    with pytest.raises(ConfigError, match=r"conversation of 20 tokens, expected at most 16 .*no position beyond it.*Set max_length=16"):
        fit(run)
