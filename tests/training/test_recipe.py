import pytest

import tiny
from brickreel.config import Base, Run
from brickreel.training import recipe


def check(before: dict, after: dict, steps_left: bool = True) -> None:
    recipe.check("checkpoint step-1 was", recipe.of(Base(), Run(**before)), recipe.of(Base(), Run(**after)), steps_left)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"objective": "rectified-flow"}, "objective"),
        ({"lora": {"rank": 2}, "p2": {}}, "lora, p2"),
        ({"micro_batches": 4}, "micro_batches"),
    ],
)
def test_what_the_weights_depend_on_is_refused_by_name(change, named):
    with pytest.raises(ValueError, match=f"step-1 was made with another {named}: restore what was, or start a run of"):
        check({}, change)


def test_rectified_flow_that_was_trained_on_uniform_timesteps_is_another_run():
    now = recipe.of(Base(), Run(objective="rectified-flow"))
    with pytest.raises(ValueError, match="made with another objective"):
        recipe.check("it was", now | {"objective": "rectified-flow"}, now, steps_left=True)


def test_how_training_is_carried_out_and_how_long_may_change():
    check({}, {"max_steps": 9, "backend": "ddp", "grad_checkpoint": 0.5, "keep_last": 1, "gauge_clips": 3})


def test_the_schedule_may_change_while_there_are_steps_to_come():
    change = {"schedule": {"lr": 1e-5}}
    check({}, change)
    with pytest.raises(ValueError, match="another schedule"):
        check({}, change, steps_left=False)


def test_another_base_model_at_the_same_place_is_told_apart_and_a_missing_one_is_not_compared(tmp_path):
    base = Base(transformer={"path": str(tmp_path / "base")})
    without = recipe.of(base, Run())
    tiny.save_transformer(tmp_path / "base")
    first = recipe.of(base, Run())
    (tmp_path / "base" / "config.json").write_text((tmp_path / "base" / "config.json").read_text() + " ")
    recipe.check("it was", first, without, steps_left=False)
    with pytest.raises(ValueError, match=r"made with another base\.transformer"):
        recipe.check("it was", first, recipe.of(base, Run()), steps_left=False)


def test_the_order_of_masks_is_told_and_is_the_same_recipe():
    masks = {"quarter_tail": 0.1, "image_head": 0.2}
    now = recipe.of(Base(), Run(mask_ratios=masks))
    assert now["mask_ratios"] == [["quarter_tail", 0.1], ["image_head", 0.2]]
    check({"mask_ratios": masks}, {"mask_ratios": dict(sorted(masks.items()))})
    recipe.check("it was", now | {"mask_ratios": masks}, now, steps_left=False)  # as older ones tell it
    with pytest.raises(ValueError, match="another mask_ratios"):
        check({"mask_ratios": masks}, {"mask_ratios": masks | {"image_head": 0.3}})


def test_older_ones_that_tell_nothing_are_accepted():
    recipe.check("it was", {}, recipe.of(Base(), Run()), steps_left=False)
